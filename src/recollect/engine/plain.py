"""Calls that add nothing to one layer in one direction but perhaps lengths: most calls by far.

A small layer's kernels take less time than the way to them, above all where other work has pushed the code on that way
out of the caches. So what such calls of the same sizes share is found in one look, and little code is gone through.
Whatever is unusual about a tensor is left to `autograd.run`, which serves it or says what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, cast

import torch

from recollect.cells.cell import Cell
from recollect.engine.autograd import any_requires_grad, by_reference, differentiable_backward
from recollect.engine.buffers import Buffer
from recollect.engine.calls import backward, kept_problem, new_problem, of_sums
from recollect.engine.layout import Layout, dense
from recollect.engine.llvm.addresses import backward_addresses, forward_addresses
from recollect.engine.llvm.problem import Problem
from recollect.engine.llvm.team import team
from recollect.engine.plan import Variant
from recollect.engine.readable import Gate
from recollect.engine.reference import PLAIN
from recollect.engine.saved import differentiable, must_be_differentiable, save, saved


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
    read = calls.gate.addresses(tensors)
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
        gate: for x and the parameters.
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
        matrices, vectors = [(gates, inputs), (gates, hidden)], [(hidden,)] * len(cell.vectors)
        self.gate = Gate([shape, *matrices, *biases, *vectors], dtype)
        # For what the backward pass reads where only the output has a gradient, which most calls are.
        kept, doutput = (self.problem.kept.total,), (*rows, hidden)
        self._gate_back = Gate([shape, *matrices, kept, doutput, *vectors], dtype)
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
        scratch = Buffer.scratch(kernel, self._dtype)
        read, vectors = (read[:5], read[5:]) if self._bias else ((*read[:3], 0, 0), read[3:])
        output, *final = [each.data_ptr() for each in results]
        values = forward_addresses(problem.plan, read, (output,), final, self._starts, vectors, scratch.addresses, kept)
        kernel.run(kernel.arguments(values, problem.rows.values))
        scratch.give_back(kernel)
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

    def backward_of_output(
        self, tensors: Sequence[torch.Tensor], kept: torch.Tensor, needed: Sequence[bool], doutput: torch.Tensor
    ) -> list[torch.Tensor | None] | None:
        """As `backward` without padding, where only the output has a gradient; None where something is unusual."""
        x, weight_ih, weight_hh = tensors[:3]
        vectors = tensors[5 if self._bias else 3 :]
        read = self._gate_back.addresses((x, weight_ih, weight_hh, kept, doutput, *vectors))
        if read is None:
            return None
        problem, dw_ih, dw_hh = self.problem, None, None
        plan, kernel, itemsize = problem.plan, problem.backward, self._dtype.itemsize
        dx = torch.empty_like(x) if needed[0] else None
        if needed[0] or needed[1]:
            dw_ih, dw_hh = torch.empty_like(weight_ih), torch.empty_like(weight_hh)
        sums, scratch = x.new_empty(problem.sums), Buffer.scratch(kernel, self._dtype)
        dstates = x.new_zeros(len(plan.states), problem.batch, problem.grad_width)
        first, of_state = dstates.data_ptr(), problem.batch * problem.grad_width * itemsize
        values = backward_addresses(
            problem,
            read[:3],
            [0 if each is None else each.data_ptr() for each in (dx, dw_ih, dw_hh, sums)],
            problem.kept.addresses(read[3], itemsize),
            read[4:5],
            range(first, first + of_state * len(plan.states), of_state),
            read[5:],
            scratch.addresses,
        )
        kernel.run(kernel.arguments(values, problem.rows.values))
        scratch.give_back(kernel)
        dbias_ih, dbias_hh, *dvectors = of_sums(problem, sums)
        found = [dx, dw_ih, dw_hh, *((dbias_ih, dbias_hh) if self._bias else ()), *dvectors]
        return [grad if need else None for grad, need in zip(found, needed, strict=True)]

    def _own(self, tensors: Sequence[Any]) -> list[Any]:
        """With None for biases and initial states that there are not."""
        x_and_matrices, biases, vectors = tensors[:3], tensors[3:5], tensors[5:]
        if not self._bias:
            biases, vectors = (None, None), tensors[3:]
        return [*x_and_matrices, *biases, *[None] * len(self._cell.states), *vectors]

    def by_reference(self, problem: Problem, layout: Layout, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What `forward` returned, in PyTorch's own operations."""
        x, *own = self._own(tensors)
        outputs, final = by_reference(self._cell, problem, layout, x, own, (PLAIN, False))
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
        everything, (doutput, *others) = ctx.saved_tensors, grads
        found = None
        if layout.dense and doutput is not None and others.count(None) == len(others) and not torch.is_grad_enabled():
            tensors, (kept,) = saved(ctx, everything)
            found = calls.backward_of_output(tensors, kept, needed, doutput)  # most calls by far
        if found is None and must_be_differentiable(grads):
            tensors, _ = differentiable(ctx, everything)
            run = partial(calls.by_reference, ctx.problem, layout, tensors)
            found = differentiable_backward(run, tensors, needed, grads)
        elif found is None:
            tensors, (kept,) = saved(ctx, everything)
            found = calls.backward(ctx.problem, layout, tensors, kept, needed, grads)
        return (*[None] * _BEFORE_TENSORS, *found)


_BEFORE_TENSORS = 4  # arguments of _Call.forward before the tensors
