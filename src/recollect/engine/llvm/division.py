"""How the work of a call is divided among threads."""

from __future__ import annotations

from typing import NamedTuple

from recollect.engine.llvm.kernels import Kernels
from recollect.engine.llvm.values import SIZE


class Division(NamedTuple):
    """How the work of a step is divided among threads.

    Attributes:
        threads: how many.
        by_units: each has units of its own, for all rows; otherwise rows of its own.
        beside: the directions of the layer run side by side, on a thread each.
    """

    threads: int
    by_units: bool
    beside: bool = False

    @property
    def row_threads(self) -> int:
        """Among how many threads the rows are dealt."""
        return 1 if self.by_units else self.threads


# Below so many multiply-adds in all, a second thread costs more than it brings; so does a word between threads
# in each step, below so many in a step.
_ALONE, _STEP_ALONE = 1 << 22, 1 << 16
# A thread streams the weights that it multiplies with from a cache further away in each step, unless they fit
# into its own; with fewer rows than this for each thread, that is what takes the time.
_OWN_CACHE, _FEW_ROWS = 1 << 18, 16
_FEWEST_ROWS = 4  # of its own that a thread is worth waking for


def divide(
    kernels: Kernels, inputs: int, hidden: int, batch: int, rows: int, steps: int, threads: int, directions: int = 1
) -> Division:
    """Choose a division.

    Args:
        kernels, inputs, hidden, batch: as for `Problem`.
        rows: N, of all steps.
        steps: T.
        threads: how many there are.
        directions: of the layer.
    """
    weights = len(kernels.plan.gates) * hidden * (inputs + hidden)
    one = _divide_one(kernels, weights, batch, rows, steps, threads)
    serial = one.threads == 1 or one.by_units  # rows are shared without a word, which nothing beats
    if serial and one.threads <= directions <= threads and directions > 1 and rows * weights * directions >= _ALONE:
        return Division(1, False, beside=True)
    return one


def _divide_one(kernels: Kernels, weights: int, batch: int, rows: int, steps: int, threads: int) -> Division:
    """Choose for one direction by itself."""
    if threads == 1 or rows * weights < _ALONE:
        return Division(1, False)
    few = rows < _FEW_ROWS * threads * steps
    if few and weights * SIZE[kernels.dtype] > _OWN_CACHE and rows * weights > _STEP_ALONE * steps:
        return Division(threads, True)
    return Division(max(1, min(threads, batch // _FEWEST_ROWS)), False)
