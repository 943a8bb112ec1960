"""The rows of a batch, step by step, as kernels find them: the part of a call's arguments that changes with lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# The argument slots that every kernel begins with. ``begin`` and ``end`` are the steps of the walk through time that a
# call takes: all of the ``steps``, or a chunk after another. ``offsets`` [T + 1] says where the rows of each step
# begin. ``places`` [all rows] says where each row stands in the caller's tensors; those past the first ``rows`` are
# padding.
SLOTS = ("steps", "begin", "end", "offsets", "places", "rows", "all_rows")


class Rows:
    """What a kernel is told of the rows.

    Args:
        steps: T, of which each has at least one row, or 1 where there are no rows at all.
        begun: rows of the first step.
        count: N, rows of all steps.
        offsets, places: the addresses of the tables (`SLOTS`).
        all_rows: rows and padding.
        tables: owns them.
        shape: of x without features, in whose memory the rows stand.

    Attributes:
        steps, begun, count, shape: as given.
        values: of the `SLOTS`.
    """

    def __init__(
        self,
        steps: int,
        begun: int,
        count: int,
        offsets: int,
        places: int,
        all_rows: int,
        tables: object,
        shape: tuple[int, ...],
    ) -> None:
        self.steps, self.begun, self.count, self._tables, self.shape = steps, begun, count, tables, shape
        self.values = (steps, 0, steps, offsets, places, count, all_rows)

    @classmethod
    def of(cls, sizes: Sequence[int], places: np.ndarray, shape: tuple[int, ...]) -> Rows:
        """That of tables in NumPy, which it keeps.

        Args:
            sizes: active rows at each step, never growing.
            places: where each of these rows [N] stands in x, y and their like, and after them what else stands there,
                which is padding.
            shape: of x without features.
        """
        places, offsets = places.astype(np.int64, copy=False), np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        at = offsets.ctypes.data, places.ctypes.data
        return cls(len(sizes), sizes[0], int(offsets[-1]), *at, len(places), (offsets, places), shape)
