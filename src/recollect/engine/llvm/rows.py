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
        sizes: active rows at each step, never growing.
        places: where each of these rows [N] stands in x, y and their like, and after them what else stands there,
            which is padding.

    Attributes:
        steps, count: T and N, the sum of ``sizes``.
        begun: rows of the first step.
        values: of the `SLOTS`.
    """

    def __init__(self, sizes: Sequence[int], places: np.ndarray) -> None:
        self.steps, self.begun = len(sizes), sizes[0]
        # Arguments point to these.
        self._places, self._offsets = places.astype(np.int64, copy=False), np.zeros(self.steps + 1, np.int64)
        np.cumsum(sizes, out=self._offsets[1:])
        self.count = int(self._offsets[-1])
        addresses = self._offsets.ctypes.data, self._places.ctypes.data
        self.values = (self.steps, 0, self.steps, *addresses, self.count, len(places))
