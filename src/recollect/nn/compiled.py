"""A recurrent layer as one operator, for ``torch.compile`` and ``torch.export``.

A traced call is a single node of the graph, whatever the length of the sequence; the cell travels in it as its
own content, so two users' cells of one name never meet and an exported program needs no source. The operator
keeps nothing for its backward pass, which runs the layer once more: a kernel's memory has a size that only the
kernel knows, and a graph wants to know all sizes beforehand.

In eager mode nothing of this is used: a custom operator costs more there, and torch.func cannot pass it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from recollect.cells.cell import Cell
from recollect.nn.stack import Stack

Tensor = torch.Tensor


def run(
    stack: Stack,
    x: Tensor,
    lengths: Tensor | Sequence[int] | None,
    resets: Tensor | None,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    noise: Sequence[Tensor],
) -> tuple[list[Any], list[Any]]:
    """What `Stack.run` does, as one node of the graph that is being traced."""
    lengths = None if lengths is None else torch.as_tensor(lengths)
    layout = [stack.num_layers, *(int(getattr(stack, name)) for name in _FLAGS)]
    results = _recurrent(x, lengths, resets, list(states), list(parameters), list(noise), stack.cell.text, layout)
    count = len(results) - len(states)
    return results[:count], results[count:]


_FLAGS = ("bidirectional", "batch_first", "bias", "projected", "dropout", "recurrent_dropout", "zoneout", "all_states")


@lru_cache(maxsize=256)
def _stack(text: str, layout: tuple[int, ...]) -> Stack:
    flags = dict(zip(_FLAGS, map(bool, layout[1:]), strict=True))
    return Stack(Cell.from_text(text), num_layers=layout[0], **flags)


@torch.library.custom_op("recollect::recurrent", mutates_args=())
def _recurrent(
    x: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    noise: Sequence[Tensor],
    cell: str,
    layout: Sequence[int],
) -> list[Tensor]:
    outputs, final = _stack(cell, tuple(layout)).run(x, lengths, resets, states, parameters, noise)
    given = {each.untyped_storage().data_ptr() for each in (x, *states)}
    # An operator's results are memory of its own: without a valid step, a final state is the initial one.
    return [
        each.clone(memory_format=torch.contiguous_format)
        if each.untyped_storage().data_ptr() in given
        else each.contiguous()
        for each in (*outputs, *final)
    ]


@_recurrent.register_fake
def _(x, lengths, resets, states, parameters, noise, cell, layout):
    stack = _stack(cell, tuple(layout))
    directions = 2 if stack.bidirectional else 1
    kept = states if stack.all_states else states[:1]
    outputs = [x.new_empty(x.shape[0], x.shape[1], directions * state.shape[2]) for state in kept]
    return [*outputs, *(state.new_empty(state.shape) for state in states)]


@torch.library.custom_op("recollect::recurrent_backward", mutates_args=())
def _recurrent_backward(
    grads: Sequence[Tensor | None],
    wanted: Sequence[int],
    x: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    noise: Sequence[Tensor],
    cell: str,
    layout: Sequence[int],
) -> list[Tensor]:
    """Gradients of the inputs numbered ``wanted`` among ``(x, *states, *parameters)``."""
    # Inside an operator nothing is recorded for autograd, unless that is asked for.
    recording = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)  # pyright: ignore[reportCallIssue]
    with recording, torch.enable_grad():
        inputs = [each.detach().requires_grad_(place in wanted) for place, each in enumerate((x, *states, *parameters))]
        end = 1 + len(states)
        outputs, final = _stack(cell, tuple(layout)).run(inputs[0], lengths, resets, inputs[1:end], inputs[end:], noise)
        pairs: list[tuple[Any, Tensor]] = [
            (out, grad)
            for out, grad in zip((*outputs, *final), grads, strict=True)
            if grad is not None and out.requires_grad
        ]
        found = torch.autograd.grad(
            [out for out, _ in pairs], [inputs[place] for place in wanted], [grad for _, grad in pairs],
            allow_unused=True,
        )  # fmt: skip
    return [
        torch.zeros_like(inputs[place]) if grad is None else grad.clone(memory_format=torch.contiguous_format)
        for place, grad in zip(wanted, found, strict=True)
    ]


@_recurrent_backward.register_fake
def _(grads, wanted, x, lengths, resets, states, parameters, noise, cell, layout):
    inputs = (x, *states, *parameters)
    return [inputs[place].new_empty(inputs[place].shape) for place in wanted]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, lengths, resets, states, parameters, noise, ctx.cell, ctx.layout = inputs
    ctx.counts = (len(states), len(parameters), len(noise))
    ctx.save_for_backward(x, lengths, resets, *states, *parameters, *noise)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    x, lengths, resets, *rest = ctx.saved_tensors
    states, parameters, noise = _cut(rest, ctx.counts)
    needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3], *ctx.needs_input_grad[4]]
    wanted = [place for place, need in enumerate(needed) if need]
    found = iter(
        _recurrent_backward(list(grads), wanted, x, lengths, resets, states, parameters, noise, ctx.cell, ctx.layout)
    )
    dx, *others = [next(found) if need else None for need in needed]
    dstates, dparameters = _cut(others, ctx.counts[:2])
    return dx, None, None, dstates, dparameters, [None] * len(noise), None, None


def _cut(flat: list[Any], counts: Sequence[int]) -> list[list[Any]]:
    parts, start = [], 0
    for count in counts:
        parts.append(flat[start : start + count])
        start += count
    return parts


_recurrent.register_autograd(_backward, setup_context=_setup)
