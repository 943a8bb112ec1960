"""A recurrent layer as one operator, for ``torch.compile`` and ``torch.export``.

A traced call is a single node of the graph, whatever the length of the sequence; the cell travels in it as its
own content, so two users' cells of one name never meet and an exported program needs no source. The operator
keeps nothing for its backward pass, which runs the layer once more: a kernel's memory has a size that only the
kernel knows, and a graph wants to know all sizes beforehand.

In eager mode nothing of this is used: a custom operator costs more there, and torch.func cannot pass it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from recollect.cells.cell import Cell
from recollect.errors import NotYetError
from recollect.nn.checks import rows_of
from recollect.nn.stack import Stack

Tensor = torch.Tensor


def run(
    stack: Stack,
    x: Tensor | PackedSequence,
    lengths: Tensor | Sequence[int] | None,
    resets: Tensor | None,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    noise: Sequence[Tensor],
) -> tuple[list[Any], list[Any]]:
    """What `Stack.run` does, as one node of the graph that is being traced."""
    packing = [each for each in x[1:] if each is not None] if isinstance(x, PackedSequence) else []
    lengths = None if lengths is None else torch.as_tensor(lengths)
    results = _recurrent(
        rows_of(x),
        packing,
        lengths,
        resets,
        list(states),
        list(parameters),
        list(noise),
        stack.cell.text,
        _layout(stack),
    )
    outputs, final = results[: -len(states)], results[-len(states) :]
    return [PackedSequence(each, *x[1:]) for each in outputs] if packing else outputs, final


_FLAGS = ("bidirectional", "batch_first", "bias", "projected", "dropout", "recurrent_dropout", "zoneout", "all_states")


def _layout(stack: Stack) -> list[int]:
    """A stack without its cell, as an operator can be given it."""
    return [stack.num_layers, *(int(getattr(stack, name)) for name in _FLAGS)]


@lru_cache(maxsize=256)
def _stack(text: str, layout: tuple[int, ...]) -> Stack:
    flags = dict(zip(_FLAGS, map(bool, layout[1:]), strict=True))
    return Stack(Cell.from_text(text), num_layers=layout[0], **flags)


@torch.library.custom_op("recollect::recurrent", mutates_args=())
def _recurrent(
    x: Tensor,
    packing: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    noise: Sequence[Tensor],
    cell: str,
    layout: Sequence[int],
) -> list[Tensor]:
    if forward_ad._current_level >= 0:  # torch would take a tangent of zeros for granted
        raise NotYetError(
            "forward-mode differentiation does not pass the operator of an exported layer",
            remedy="differentiate the layer itself, which can, or backward",
        )
    given = {each.untyped_storage().data_ptr() for each in (x, *states)}
    # An operator's results are memory of its own: without a valid step, a final state is the initial one.
    return [
        each.clone(memory_format=torch.contiguous_format)
        if each.untyped_storage().data_ptr() in given
        else each.contiguous()
        for each in _results((x, *states, *parameters), packing, lengths, resets, len(states), noise, cell, layout)
    ]


@_recurrent.register_fake
def _(x, packing, lengths, resets, states, parameters, noise, cell, layout):
    stack = _stack(cell, tuple(layout))
    directions = 2 if stack.bidirectional else 1
    kept = states if stack.all_states else states[:1]
    outputs = [x.new_empty(*x.shape[:-1], directions * state.shape[2]) for state in kept]
    return [*outputs, *(state.new_empty(state.shape) for state in states)]


@torch.library.custom_op("recollect::recurrent_backward", mutates_args=())
def _recurrent_backward(
    grads: Sequence[Tensor | None],
    wanted: Sequence[int],
    x: Tensor,
    packing: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    noise: Sequence[Tensor],
    cell: str,
    layout: Sequence[int],
) -> list[Tensor]:
    """Gradients of the inputs numbered ``wanted`` among ``(x, *states, *parameters)``."""
    with _recorded():
        inputs = _leaves((x, *states, *parameters))
        results = _results(inputs, packing, lengths, resets, len(states), noise, cell, layout)
        return _owned(_gradients(results, grads, [inputs[place] for place in wanted]))


@_recurrent_backward.register_fake
def _(grads, wanted, x, packing, lengths, resets, states, parameters, noise, cell, layout):
    return _like((x, *states, *parameters), wanted)


@torch.library.custom_op("recollect::recurrent_double_backward", mutates_args=())
def _recurrent_double_backward(
    seconds: Sequence[Tensor | None],
    needed: Sequence[int],
    grads: Sequence[Tensor | None],
    wanted: Sequence[int],
    x: Tensor,
    packing: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    noise: Sequence[Tensor],
    cell: str,
    layout: Sequence[int],
) -> list[Tensor]:
    """Gradients of `_recurrent_backward`'s inputs numbered ``needed`` among ``(*grads, x, *states, *parameters)``."""
    with _recorded():
        inputs, outer = _leaves((x, *states, *parameters)), _leaves(grads)
        results = _results(inputs, packing, lengths, resets, len(states), noise, cell, layout)
        firsts = _gradients(results, outer, [inputs[place] for place in wanted], create_graph=True)
        everything = (*outer, *inputs)
        return _owned(_gradients(firsts, seconds, [everything[place] for place in needed]))


@_recurrent_double_backward.register_fake
def _(seconds, needed, grads, wanted, x, packing, lengths, resets, states, parameters, noise, cell, layout):
    return _like((*grads, x, *states, *parameters), needed)


@contextmanager
def _recorded() -> Iterator[None]:
    """Record for autograd, which inside of an operator is off."""
    off = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)  # pyright: ignore[reportCallIssue]
    with off, torch.enable_grad():
        yield


def _leaves(tensors: Sequence[Tensor | None]) -> list[Any]:
    return [None if each is None else each.detach().requires_grad_() for each in tensors]


def _results(
    inputs: Sequence[Tensor],
    packing: Sequence[Tensor],
    lengths: Any,
    resets: Any,
    states: int,
    noise: Any,
    cell: str,
    layout: Sequence[int],
) -> list[Tensor]:
    """The operator's results as the layer has them."""
    x, rest = inputs[0], inputs[1:]
    batch = PackedSequence(x, *packing) if packing else x
    outputs, final = _stack(cell, tuple(layout)).run(batch, lengths, resets, rest[:states], rest[states:], noise)
    return [*map(rows_of, outputs), *final]


def _gradients(
    outputs: Sequence[Tensor], grads: Sequence[Tensor | None], inputs: Sequence[Tensor], *, create_graph: bool = False
) -> list[Tensor]:
    """The gradients of ``inputs``, zeros where nothing depends on them."""
    pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None and out.requires_grad]
    if not pairs:
        return [torch.zeros_like(each) for each in inputs]
    found = torch.autograd.grad(
        [out for out, _ in pairs], inputs, [grad for _, grad in pairs], create_graph=create_graph, allow_unused=True
    )
    return [torch.zeros_like(each) if grad is None else grad for grad, each in zip(found, inputs, strict=True)]


def _owned(results: Sequence[Tensor]) -> list[Tensor]:
    """Each in memory of its own, as an operator's results must be."""
    return [each.detach().clone(memory_format=torch.contiguous_format) for each in results]


def _like(tensors: Sequence[Any], places: Sequence[int]) -> list[Tensor]:
    return [tensors[place].new_empty(tensors[place].shape) for place in places]


def _cut(flat: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    ends = list(accumulate(counts))
    return [list(flat[end - count : end]) for count, end in zip(counts, ends, strict=True)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, packing, lengths, resets, states, parameters, noise, ctx.cell, ctx.layout = inputs
    ctx.counts = (1, len(packing), 1, 1, len(states), len(parameters), len(noise))
    ctx.save_for_backward(x, *packing, lengths, resets, *states, *parameters, *noise)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    (x,), packing, (lengths,), (resets,), states, parameters, noise = _cut(ctx.saved_tensors, ctx.counts)
    needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4], *ctx.needs_input_grad[5]]
    wanted = [place for place, need in enumerate(needed) if need]
    inputs = (x, packing, lengths, resets, states, parameters, noise, ctx.cell, ctx.layout)
    found = iter(_recurrent_backward(list(grads), wanted, *inputs))
    (dx,), dstates, dparameters = _cut(
        [next(found) if need else None for need in needed], (1, len(states), len(parameters))
    )
    return dx, [None] * len(packing), None, None, dstates, dparameters, [None] * len(noise), None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grads, ctx.wanted, *rest = inputs
    _setup(ctx, tuple(rest), output)
    ctx.counts = (len(grads), *ctx.counts)
    ctx.save_for_backward(*grads, *ctx.to_save)


def _double_backward(ctx: Any, seconds: Sequence[Tensor | None]) -> tuple[Any, ...]:
    grads, (x,), packing, (lengths,), (resets,), states, parameters, noise = _cut(ctx.saved_tensors, ctx.counts)
    needed = [*ctx.needs_input_grad[0], ctx.needs_input_grad[2], *ctx.needs_input_grad[6], *ctx.needs_input_grad[7]]
    places = [place for place, need in enumerate(needed) if need]
    inputs = (x, packing, lengths, resets, states, parameters, noise, ctx.cell, ctx.layout)
    found = iter(_recurrent_double_backward(list(seconds), places, grads, ctx.wanted, *inputs))
    dgrads, (dx,), dstates, dparameters = _cut(
        [next(found) if need else None for need in needed], (len(grads), 1, len(states), len(parameters))
    )
    nothing = [None] * len(packing), None, None
    return dgrads, None, dx, *nothing, dstates, dparameters, [None] * len(noise), None, None


_recurrent.register_autograd(_backward, setup_context=_setup)
_recurrent_backward.register_autograd(_double_backward, setup_context=_setup_backward)
