"""A long sequence in segments, so that training needs memory for one of them only.

What the backward pass reads takes several times the memory of the outputs, and grows with the sequence. Here the
forward pass keeps the states between segments; the backward pass runs each segment forward once more, keeps what it
reads of that one, and goes back through it (A. Gruslys et al., "Memory-efficient backpropagation through time",
2016). That is one more forward pass; gradients of parameters are summed segment by segment, so they equal the
unsegmented ones to rounding.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any

import torch

from recollect.cells.cell import Cell
from recollect.engine.calls import backward, forward, prepare
from recollect.engine.layout import Layout
from recollect.engine.llvm.problem import Problem
from recollect.engine.memory import check_memory
from recollect.engine.reference import Direction, Extras, Weights
from recollect.engine.saved import must_be_differentiable, save, saved
from recollect.errors import NotYetError

# Memory that is left to a segment, and how many times that a sequence must need to be worth cutting; in bytes.
_SEGMENT, _WORTH = 1 << 25, 8


def steps_of(problem: Problem, wanted: int | str) -> int:
    """The steps of a segment: as wanted, or with ``"auto"`` so many that memory is bounded; T for one segment."""
    if wanted != "auto":
        return min(int(wanted), problem.rows.steps)
    each = problem.bytes_per_step
    if each * problem.rows.steps <= _WORTH * _SEGMENT:
        return problem.rows.steps
    return max(1, _SEGMENT // each)


def _cut(layout: Layout, steps: int, *, reverse: bool) -> list[Layout]:
    """The segments in the order in which a layer runs through them."""
    found = [layout.part(first, first + steps) for first in range(0, len(layout.sizes), steps)]
    return found[::-1] if reverse else found


class Segmented(torch.autograd.Function):
    """Derivatives of `autograd.run` for one direction, segment by segment; first ones only.

    ``apply(cell, layout, direction, steps, *tensors)`` returns the outputs and the final states.
    """

    @staticmethod
    def forward(ctx: Any, cell: Cell, layout: Layout, direction: Direction, steps: int, *tensors: Any) -> Any:
        ctx.set_materialize_grads(False)
        x, hidden = tensors[0], tensors[2].shape[1]
        extras, reverse = direction.extras, direction.reverse
        ctx.cell, ctx.extras, ctx.reverse = cell, extras.holding([None] * len(extras.tensors)), reverse
        ctx.segments = _cut(layout, steps, reverse=reverse)
        wanted = len(cell.states) if extras.all_states else 1
        ctx.hidden, ctx.padded = hidden, not (layout.packed or layout.dense)
        outputs = [_room(x, hidden, zeros=ctx.padded) for _ in range(wanted)]
        ctx.batch = layout.batch
        read = _contiguous(tensors)
        given = read[5 : 5 + len(cell.states)]
        states = [x.new_zeros(1, ctx.batch, hidden) if each is None else each.clone() for each in given]
        begun = []
        for segment in ctx.segments:
            starts = [state[:, : segment.batch].clone() for state in states]
            begun += starts
            problems, given, added = _of_segment(ctx, extras, read, segment, starts)
            [(_, final, _)] = forward(problems, given, [added], save=False, outputs=outputs)
            for state, new in zip(states, final, strict=True):
                state[:, : segment.batch] = new
        save(ctx, tensors, [*extras.tensors, *begun])
        return (*outputs, *states)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        if must_be_differentiable(grads):
            raise NotYetError(
                "a layer that runs in segments has first derivatives only, of one loss at a time",
                given="create_graph=True" if torch.is_grad_enabled() else "is_grads_batched=True, or the like",
                remedy="checkpoint=None",
            )
        needed, (tensors, others) = ctx.needs_input_grad[_BEFORE_TENSORS:], saved(ctx, ctx.saved_tensors)
        x, hidden, count, of_extras = tensors[0], ctx.hidden, len(ctx.cell.states), len(ctx.extras.tensors)
        extras, begun = ctx.extras.holding(others[:of_extras]), others[of_extras:]
        wanted = len(grads) - count
        read, leaving = _contiguous(tensors), _contiguous(grads)
        douts = leaving[:wanted]
        dstates = [x.new_zeros(1, ctx.batch, hidden) if grad is None else grad.clone() for grad in leaving[wanted:]]
        dx = _room(x, x.shape[-1], zeros=ctx.padded) if needed[0] else None
        sums: list[torch.Tensor | None] = [None] * len(tensors)
        every = [*needed[:5], *[True] * count, *needed[5 + count :]]
        for number, segment in reversed(list(enumerate(ctx.segments))):
            starts = begun[number * count : (number + 1) * count]
            problems, given, added = _of_segment(ctx, extras, read, segment, starts)
            [(_, _, memory)] = forward(problems, given, [added], save=True, outputs=_unread(x, hidden, wanted))
            assert memory is not None, "it was told to save"
            upstream = [*douts, *(state[:, : segment.batch] for state in dstates)]
            found = backward(problems, [memory], given, [added], every, upstream, dx=dx)
            for place, grad in enumerate(found[1:], 1):
                if grad is None:
                    continue
                if 5 <= place < 5 + count:
                    dstates[place - 5][:, : segment.batch] = grad
                else:
                    before = sums[place]
                    sums[place] = grad if before is None else before + grad  # not in place: biases may share theirs
        result = [dx, *sums[1:5], *dstates, *sums[5 + count :]]
        return (
            *[None] * _BEFORE_TENSORS,
            *(grad if need else None for grad, need in zip(result, needed, strict=True)),
        )


def _contiguous(tensors: Sequence[Any]) -> list[Any]:
    """The tensors as kernels go through them, once for all segments."""
    found = []
    for tensor in tensors:
        if tensor is not None:
            check_memory("a tensor of a layer that trains in segments", tensor)  # torch would read without
            tensor = tensor.contiguous()
        found.append(tensor)
    return found


def _room(x: torch.Tensor, features: int, *, zeros: bool) -> torch.Tensor:
    """Room in the layout of x; ``zeros`` where there is padding, which belongs to no segment."""
    return (x.new_zeros if zeros else x.new_empty)(*x.shape[:-1], features)


def _unread(x: torch.Tensor, hidden: int, count: int) -> list[torch.Tensor]:
    """Room for outputs in the layout of x that nobody reads: only what is written to takes memory, until it dies."""
    shape = (count, *x.shape[:-1], hidden)
    memory = mmap.mmap(-1, math.prod(shape) * x.itemsize)  # not the heap, which keeps what was once written to
    return list(torch.frombuffer(memory, dtype=x.dtype).view(shape))


_BEFORE_TENSORS = 4  # arguments of Segmented.forward before the tensors


def _of_segment(
    ctx: Any, extras: Extras, tensors: Sequence[Any], segment: Layout, starts: Sequence[torch.Tensor]
) -> tuple[list[Problem], list[Any], Extras]:
    """The problem, the tensors and the additions of one segment, whose rows stay where they are in the batch."""
    x, ih, hh, bias_ih, bias_hh, *rest = tensors
    mask = extras.feed_mask
    added = extras._replace(checkpoint=None, feed_mask=None if mask is None else mask[: segment.batch])
    weights = Weights(ih, hh, bias_ih, bias_hh, None, rest[len(starts) :])
    return *prepare(ctx.cell, x, segment, [Direction(starts, weights, added, ctx.reverse, "")]), added
