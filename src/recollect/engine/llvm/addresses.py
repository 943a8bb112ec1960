"""The addresses that a pass is called with, in the order of its slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from recollect.engine.llvm.problem import Problem
from recollect.engine.plan import Plan


def forward_addresses(
    plan: Plan,
    read: Sequence[int],
    outputs: Iterable[int],
    final: Iterable[int],
    initial: Iterable[int],
    vectors: Iterable[int],
    scratch: Sequence[int],
    kept: Sequence[int] | None = None,
    given: Iterable[int] = (),
) -> tuple[int, ...]:
    """The addresses of a forward pass in the order of `Problem.infer`.

    Args:
        plan: the cell's.
        read: of x and the four parameters; 0 for a bias that there is not.
        outputs, final, initial, vectors: of each output, of each state after the last step and before the first, of
            each vector.
        scratch: of the parts of the pass's own memory.
        kept: of the parts of the memory where it leaves what the backward pass reads, if it does.
        given: of `_given`.
    """
    left = [0] * (len(plan.states) + 1) if kept is None else kept
    return (*read, *scratch, *left, *outputs, *initial, *final, *vectors, *given)


def backward_addresses(
    problem: Problem,
    read: Sequence[int],
    written: Sequence[int],
    kept: Iterable[int],
    doutputs: Sequence[int],
    dstates: Iterable[int],
    vectors: Iterable[int],
    scratch: Iterable[int],
    given: Iterable[int] = (),
    leaving: Iterable[int] = (),
) -> tuple[int, ...]:
    """The addresses of a backward pass in the order of `Problem.backward`.

    Args:
        problem: of the direction.
        read: of x and the two matrices.
        written: of the gradients of x and of the two matrices, 0 for one that is not wanted, and of the sums.
        kept: of the parts of what the forward pass left.
        doutputs: of the gradient of each output; 0 for one that there is not.
        dstates: of the gradient of each state, and of each state's at resets.
        vectors: of each vector.
        scratch: of the parts of the pass's own memory.
        given: of `_given`.
        leaving: of `Problem.leaving`.
    """
    (x, ih, hh), (dx, dw_ih, dw_hh, sums) = read, written
    rows, strides = [each or problem.zeros for each in doutputs], [problem.hidden if each else 0 for each in doutputs]
    matrices = (x, dx, ih, hh, dw_ih, dw_hh, sums)
    return (*matrices, *kept, *rows, *strides, *dstates, *vectors, *given, *leaving, *scratch)
