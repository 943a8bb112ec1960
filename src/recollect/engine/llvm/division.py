"""How the work of a call is divided among threads."""

from __future__ import annotations

from typing import NamedTuple

from recollect.engine.llvm.kernels import Kernels


class Division(NamedTuple):
    """How the work of a step is divided among threads.

    Attributes:
        threads: how many.
        by_units: each has units of its own, for all rows; otherwise rows of its own.
        beside: the directions of the layer run side by side, on a thread each.
        rows_back: the backward pass shares rows, whatever the forward pass shares.
    """

    threads: int
    by_units: bool
    beside: bool = False
    rows_back: bool = False

    @property
    def back(self) -> Division:
        """That of the backward pass."""
        return self._replace(by_units=self.by_units and not self.rows_back)

    @property
    def row_threads(self) -> int:
        """Among how many threads the rows are dealt."""
        return 1 if self.by_units else self.threads


# Below so many multiply-adds in all, a second thread costs more than it brings; so does a word between threads
# in each step, below so many in a step. Layers of a stack wake it once for all of them, so that less is worth it.
_ALONE, _STEP_ALONE, _STACK_ALONE = 1 << 22, 1 << 16, 1 << 21
# A thread streams the weights that it multiplies with from a cache further away in each step, unless they fit
# into its own; with few rows for each thread, that is what takes the time. How few depends on whether some near cache
# holds them (bytes of weights), and in the backward pass threads that share units exchange more in each step.
_OWN_CACHE, _NEAR_CACHE = 1 << 18, 1 << 21
_FEW_ROWS, _FEW_ROWS_FAR, _FEW_ROWS_BACK = 12, 16, 6
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


def layers_beside(
    kernels: Kernels, inputs: int, hidden: int, batch: int, rows: int, steps: int, threads: int, layers: int
) -> bool:
    """Whether the layers of a stack had better run at the same time, a chunk of steps apart, on a thread each.

    Not where one of them alone has a use for more threads, be it for its units only: a thread then reads half of a
    layer's weights from its own cache in each step, and would read all of them from one further away.

    Args:
        kernels, inputs, hidden, batch, rows, steps, threads: as for `divide`, of the first layer.
        layers: how many there are.
    """
    first, above = (len(kernels.plan.gates) * hidden * (each + hidden) for each in (inputs, hidden))
    if threads == 1 or rows * (first + (layers - 1) * above) < _STACK_ALONE:
        return False
    return all(_divide_one(kernels, each, batch, rows, steps, threads).threads == 1 for each in (first, above))


def _divide_one(kernels: Kernels, weights: int, batch: int, rows: int, steps: int, threads: int) -> Division:
    """Choose for one direction by itself."""
    if threads == 1 or rows * weights < _ALONE:
        return Division(1, False)
    size = weights * kernels.weight_bytes
    near = size <= _NEAR_CACHE
    few = rows < (_FEW_ROWS if near else _FEW_ROWS_FAR) * threads * steps
    if few and size > _OWN_CACHE and rows * weights > _STEP_ALONE * steps:
        return Division(threads, True, rows_back=near and rows >= _FEW_ROWS_BACK * threads * steps)
    return Division(max(1, min(threads, batch // _FEWEST_ROWS)), False)
