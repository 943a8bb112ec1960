"""Calls that add nothing to one layer in one direction but perhaps lengths: most calls by far.

A small layer's kernels take less time than the way to them, above all where other work has pushed the code on that way
out of the caches. So what such calls of the same sizes share is found in one look, and little code is gone through.
Whatever is unusual about a tensor is left to `autograd.run`, which serves it or says what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import torch

from recollect.cells.cell import Cell
from recollect.engine.autograd import any_requires_grad, by_reference, differentiable_backward, must_be_differentiable
from recollect.engine.buffers import Buffer
from recollect.engine.calls import backward, forward_addresses, kept_problem, new_problem
from recollect.engine.layout import Layout, dense
from recollect.engine.llvm.problem import Problem
from recollect.engine.llvm.team import team
from recollect.engine.plan import Variant
from recollect.engine.readable import addresses
from recollect.engine.reference import PLAIN
from recollect.engine.saved import differentiable, save, saved


def run(
    cell: Cell,
    x: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    hidden: int,
    lay_out: Callable[[], Layout] | None = None,
    *,
    bias: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...] | None:
    """Run a layer over a batch.

    Args:
        cell: the step.
        x: [T, B, I], or [B, T, I] with ``batch_first``; nothing is an `autograd.obstacle` to it.
        parameters: W_ih, W_hh, with ``bias`` those of both sides, then the vectors.
        hidden: H.
        lay_out: says how the batch lies in memory, where it may have padding.

    Returns:
        The output and then the final states; None where something is unusual.
    """
    dtype = x.dtype
    calls = _calls(cell, x.shape, dtype, hidden, bias, batch_first, torch.get_num_threads(), os.getpid())
    if calls is None:
        return None
    tensors = (x, *parameters)
    read = addresses(tensors, calls.shapes, dtype)
    if read is None:
        return None
    layout, problem = calls.layout, calls.problem
    if lay_out is not None:
        layout = lay_out()
        if not layout.count:
            return None
        if not layout.dense:
            problem = calls.of(layout)
    if torch.is_grad_enabled() and any_requires_grad(tensors):
        return cast("tuple[torch.Tensor, ...]", _Call.apply(calls, problem, layout, read, *tensors))
    return calls.forward(problem, layout, read)


class _Calls:
    """What calls of the same sizes share.

    Attributes:
        shapes: of x and the parameters.
        layout, problem: those without padding.
    """

    def __init__(
        self, cell: Cell, layout: Layout, shape: torch.Size, dtype: torch.dtype, hidden: int, bias: bool, threads: int
    ) -> None:
        *rows, inputs = shape
        self._cell, self._dtype, self._bias, self.layout = cell, dtype, bias, layout
        self._sizes = (cell, dtype, Variant()), inputs, hidden
        self._threads = threads, team(), 1
        self.problem = kept_problem(*self._sizes, layout, False, *self._threads)
        gates, states = self.problem.gates, len(cell.states)
        biases = [(gates,)] * 2 if bias else []
        self.shapes = [shape, (gates, inputs), (gates, hidden), *biases, *[(hidden,)] * len(cell.vectors)]
        self._starts, self._wider = [self.problem.zeros] * states, self.problem.width != hidden
        # For results to be made like them, without memory of their own.
        number = torch.zeros(1, dtype=dtype, device="cpu")
        self._results = [number.expand(*rows, hidden), *[number.expand(1, layout.batch, self.problem.width)] * states]

    def of(self, layout: Layout) -> Problem:
        """The problem where the batch lies otherwise."""
        return new_problem(*self._sizes, layout, False, *self._threads)

    def forward(
        self, problem: Problem, layout: Layout, read: Sequence[int], kept: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """As `run`, from the addresses of x and the parameters, without autograd.

        ``kept`` has the addresses of the memory for what `backward` reads.
        """
        kernel = problem.infer if kept is None else problem.train
        results = [torch.empty_like(each) for each in self._results]
        scratch = Buffer(self._dtype, kernel.parts)
        read, vectors = (read[:5], read[5:]) if self._bias else ((*read[:3], 0, 0), read[3:])
        output, *final = [each.data_ptr() for each in results]
        values = forward_addresses(problem.plan, read, (output,), final, self._starts, vectors, scratch.addresses, kept)
        kernel.run(kernel.arguments(values, problem.rows.values))
        if self._wider:
            results[1:] = [each[:, :, : problem.hidden].contiguous() for each in results[1:]]
        if not layout.dense:
            begun = problem.rows.begun
            for each in results[1:] if begun < layout.batch else ():
                each[:, begun:] = 0  # rows of length 0
            results[1:] = map(layout.unsort, results[1:])
        return tuple(results)

    def backward(
        self,
        problem: Problem,
        layout: Layout,
        tensors: Sequence[torch.Tensor],
        kept: torch.Tensor,
        needed: Sequence[bool],
        grads: Sequence[torch.Tensor | None],
    ) -> list[torch.Tensor | None]:
        """Gradients of x and the parameters, from those of the output and the final states; None where not needed."""
        output, *final = grads
        grads = output, *[None if each is None else layout.sort(each) for each in final]
        found = backward([problem], [kept], self._own(tensors), [PLAIN], self._own(needed), grads)
        count = len(found) - len(self._cell.vectors)
        return [*found[: 5 if self._bias else 3], *found[count:]]

    def _own(self, tensors: Sequence[Any]) -> list[Any]:
        """With None for biases and initial states that there are not."""
        x_and_matrices, biases, vectors = tensors[:3], tensors[3:5], tensors[5:]
        if not self._bias:
            biases, vectors = (None, None), tensors[3:]
        return [*x_and_matrices, *biases, *[None] * len(self._cell.states), *vectors]

    def by_reference(self, layout: Layout, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What `forward` returned, in PyTorch's own operations."""
        x, *own = self._own(tensors)
        outputs, final = by_reference(self._cell, layout, x, own, (PLAIN, False))
        return [*outputs, *map(layout.unsort, final)]


@lru_cache(maxsize=128)
def _calls(
    cell: Cell, shape: torch.Size, dtype: torch.dtype, hidden: int, bias: bool, batch_first: bool, threads: int,
    process: int,
) -> _Calls | None:  # fmt: skip
    """What calls with such an x share, on so many threads in this process; None where x is unusual."""
    if len(shape) != 3 or 0 in shape:
        return None
    steps, batch = shape[:2][:: -1 if batch_first else 1]
    layout = dense(batch, steps, batch_first=batch_first)
    return _Calls(cell, layout, shape, dtype, hidden, bias, threads) if layout.kept else None


class _Call(torch.autograd.Function):
    """Derivatives of `run`; double backward goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any, calls: _Calls, problem: Problem, layout: Layout, read: Sequence[int], *tensors: torch.Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.calls, ctx.problem, ctx.layout = calls, problem, layout
        kept = Buffer(tensors[0].dtype, problem.kept)
        save(ctx, tensors, [kept.tensor()])
        return calls.forward(problem, layout, read, kept.addresses)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        calls, layout, needed = ctx.calls, ctx.layout, ctx.needs_input_grad[_BEFORE_TENSORS:]
        if must_be_differentiable(grads):
            tensors, _ = differentiable(ctx)
            found = differentiable_backward(lambda: calls.by_reference(layout, tensors), tensors, needed, grads)
        else:
            tensors, (kept,) = saved(ctx)
            found = calls.backward(ctx.problem, layout, tensors, kept, needed, grads)
        return (*[None] * _BEFORE_TENSORS, *found)


_BEFORE_TENSORS = 4  # arguments of _Call.forward before the tensors
