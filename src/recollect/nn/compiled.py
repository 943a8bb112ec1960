"""A recurrent layer as one operator, for ``torch.compile`` and ``torch.export``.

A traced call is a single node of the graph, whatever the length of the sequence; the cell travels in it as its
own content, so two users' cells of one name never meet and an exported program needs no source.

An operator's results are tensors whose sizes the graph knows beforehand. So what the kernels leave for the
backward pass is a *tape* of such results, as large as it can become. Where other backends serve there is no
tape, and the backward pass runs the layer once more.

In eager mode nothing of this is used: a custom operator costs more there, and torch.func cannot pass it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from recollect.cells.cell import Cell
from recollect.engine import autograd, calls, dispatch
from recollect.engine.layout import Layout
from recollect.engine.llvm import cache
from recollect.engine.llvm.machine import host
from recollect.engine.llvm.problem import most_memory
from recollect.engine.plan import Variant
from recollect.engine.reference import Direction, Result
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
    rows = rows_of(x)
    packing = [each for each in x[1:] if each is not None] if isinstance(x, PackedSequence) else []
    lengths = None if lengths is None else torch.as_tensor(lengths, device="cpu")
    differentiable = torch.is_grad_enabled() and any(each.requires_grad for each in (rows, *states, *parameters))
    # What torch.compiler.is_exporting() returns, which the compiler of torch 2.9 takes for True in every graph.
    exporting = torch.compiler._is_exporting_flag
    tapes = differentiable and not exporting and dispatch.kernels_serve(rows) and not stack.projected
    arguments = (rows, packing, lengths, resets, list(states), list(parameters), list(noise))
    results = _recurrent(*arguments, stack.cell.text, _layout(stack), tapes)
    outputs = results[: _count_outputs(stack, states)]
    final = results[len(outputs) : len(outputs) + len(states)]
    return [PackedSequence(each, *x[1:]) for each in outputs] if packing else outputs, final


_FLAGS = (
    "bidirectional", "batch_first", "bias", "projected", "dropout", "recurrent_dropout", "zoneout", "all_states",
    "bfloat16",
)  # fmt: skip


# A compiler keeps on disk what it made of a graph, sizes of results included, and looks at the graph only to see
# whether that still holds. So the graph has a number that no other machine and no other version of the kernels has.
_WHOSE_TAPES = int(cache.key("tape", host())[:15], 16)


def _layout(stack: Stack) -> list[int]:
    """A stack without its cell, as an operator can be given it."""
    return [_WHOSE_TAPES, stack.num_layers, *(int(getattr(stack, name)) for name in _FLAGS)]


@lru_cache(maxsize=256)
def _stack(text: str, layout: tuple[int, ...]) -> Stack:
    _, num_layers, *values = layout
    return Stack(Cell.from_text(text), num_layers=num_layers, **dict(zip(_FLAGS, map(bool, values), strict=True)))


def _count_outputs(stack: Stack, states: Sequence[Tensor]) -> int:
    return len(states) if stack.all_states else 1


# The operators ----------------------------------------------------------------------------------


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
    tapes: bool,
) -> list[Tensor]:
    """The outputs, the final states and, where ``tapes``, the tape of `Stack.run`."""
    if forward_ad._current_level >= 0:  # torch would take a tangent of zeros for granted
        raise NotYetError(
            "forward-mode differentiation does not pass the operator of an exported layer",
            remedy="differentiate the layer itself, which can, or backward",
        )
    recorder = _Recorder(x) if tapes else None
    inputs = (x, *states, *parameters)
    results = _results(inputs, packing, lengths, resets, len(states), noise, cell, layout, recorder)
    # An operator's results are memory of their own: the final state of a row without steps is the initial one.
    return [*_owned(results), *(recorder.tape if recorder else ())]


@_recurrent.register_fake
def _(x, packing, lengths, resets, states, parameters, noise, cell, layout, tapes):
    stack = _stack(cell, tuple(layout))
    directions = 2 if stack.bidirectional else 1
    kept = states[: _count_outputs(stack, states)]
    outputs = [x.new_empty(*x.shape[:-1], directions * state.shape[2]) for state in kept]
    results = [*outputs, *(state.new_empty(state.shape) for state in states)]
    if tapes:
        for layer in range(stack.num_layers):
            width = x.shape[-1] if layer == 0 else directions * states[0].shape[2]
            all_states = stack.all_states and layer == stack.num_layers - 1
            variant = Variant(stack.zoneout, stack.recurrent_dropout, resets is not None, all_states, stack.bfloat16)
            for _ in range(directions):
                kept = states[: len(states) if all_states else 1]
                outputs = [x.new_empty(*x.shape[:-1], state.shape[2]) for state in kept]
                final = [state.new_empty(1, *state.shape[1:]) for state in states]
                results += (*outputs, *final, _room_for_memory(stack.cell, x, width, states[0].shape[2], variant))
    return results


@torch.library.custom_op("recollect::recurrent_backward", mutates_args=())
def _recurrent_backward(
    grads: Sequence[Tensor | None],
    wanted: Sequence[int],
    tape: Sequence[Tensor],
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
        player = _Player(tape) if tape else None
        results = _results(inputs, packing, lengths, resets, len(states), noise, cell, layout, player)
        return _owned(_gradients(results, grads, [inputs[place] for place in wanted]))


@_recurrent_backward.register_fake
def _(grads, wanted, tape, x, packing, lengths, resets, states, parameters, noise, cell, layout):
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


# The tape: of each layer and direction the outputs, the final states and the kernel's memory -----


def _rows(x: Tensor) -> Any:
    """The most rows that a batch can have."""
    return x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1]


def _room_for_memory(cell: Cell, x: Tensor, inputs: Any, hidden: Any, variant: Variant) -> Tensor:
    return x.new_empty(most_memory(calls.kernels_of(cell, x.dtype, variant), inputs, hidden, _rows(x)))


class _Recorder:
    """Runs each layer and direction on the kernels, and keeps on its tape what the backward pass reads."""

    def __init__(self, x: Tensor) -> None:
        self.tape: list[Tensor] = []
        self._x = x

    def __call__(self, cell: Cell, x: Tensor, layout: Layout, directions: Sequence[Direction]) -> list[Result]:
        memories = [
            _room_for_memory(cell, self._x, x.shape[-1], each.weights.hh.shape[1], each.extras.variant)
            for each in directions
        ]
        if layout.count:
            results = [kept[:2] for kept in autograd.run_and_keep(cell, x, layout, directions, memories)]
        else:
            results = [
                (outputs, [each.clone() for each in final])
                for outputs, final in autograd.run(cell, x, layout, directions)
            ]
        for (outputs, final), memory in zip(results, memories, strict=True):
            self.tape += (*outputs, *final, memory)
        return [(tuple(outputs), tuple(final)) for outputs, final in results]


class _Player:
    """Gives for each layer and direction what is on the tape, with its derivatives."""

    def __init__(self, tape: Sequence[Tensor]) -> None:
        self._tape = iter(tape)

    def __call__(self, cell: Cell, x: Tensor, layout: Layout, directions: Sequence[Direction]) -> list[Result]:
        tape, count, kept = self._tape, len(cell.states), []
        for each in directions:
            outputs = list(islice(tape, count if each.extras.all_states else 1))
            kept.append(autograd.Kept(outputs, list(islice(tape, count)), next(tape)))
        if not layout.count:
            return autograd.run(cell, x, layout, directions)
        return autograd.replay(cell, x, layout, directions, kept)


# Parts of the operators --------------------------------------------------------------------------


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
    run_layer: _Recorder | _Player | None = None,
) -> list[Tensor]:
    """The operator's results as the layer has them."""
    x, rest = inputs[0], inputs[1:]
    batch, stack = PackedSequence(x, *packing) if packing else x, _stack(cell, tuple(layout))
    outputs, final = stack.run(batch, lengths, resets, rest[:states], rest[states:], noise, run_layer)
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


# Their derivatives -------------------------------------------------------------------------------


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    x, packing, lengths, resets, states, parameters, noise, ctx.cell, ctx.layout, _ = inputs
    ctx.results = _count_outputs(_stack(ctx.cell, tuple(ctx.layout)), states) + len(states)
    tape = output[ctx.results :]
    ctx.counts = (len(tape), 1, len(packing), 1, 1, len(states), len(parameters), len(noise))
    ctx.save_for_backward(*tape, x, *packing, lengths, resets, *states, *parameters, *noise)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    tape, (x,), packing, (lengths,), (resets,), states, parameters, noise = _cut(ctx.saved_tensors, ctx.counts)
    needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4], *ctx.needs_input_grad[5]]
    wanted = [place for place, need in enumerate(needed) if need]
    inputs = (x, packing, lengths, resets, states, parameters, noise, ctx.cell, ctx.layout)
    found = iter(_recurrent_backward(list(grads[: ctx.results]), wanted, tape, *inputs))
    (dx,), dstates, dparameters = _cut(
        [next(found) if need else None for need in needed], (1, len(states), len(parameters))
    )
    return dx, [None] * len(packing), None, None, dstates, dparameters, [None] * len(noise), None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grads, ctx.wanted, tape, x, packing, lengths, resets, states, parameters, noise, ctx.cell, ctx.layout = inputs
    ctx.tape = len(tape)
    ctx.counts = (len(grads), 1, len(packing), 1, 1, len(states), len(parameters), len(noise))
    ctx.save_for_backward(*grads, x, *packing, lengths, resets, *states, *parameters, *noise)


def _double_backward(ctx: Any, seconds: Sequence[Tensor | None]) -> tuple[Any, ...]:
    grads, (x,), packing, (lengths,), (resets,), states, parameters, noise = _cut(ctx.saved_tensors, ctx.counts)
    needed = [*ctx.needs_input_grad[0], ctx.needs_input_grad[3], *ctx.needs_input_grad[7], *ctx.needs_input_grad[8]]
    places = [place for place, need in enumerate(needed) if need]
    inputs = (x, packing, lengths, resets, states, parameters, noise, ctx.cell, ctx.layout)
    found = iter(_recurrent_double_backward(list(seconds), places, grads, ctx.wanted, *inputs))
    dgrads, (dx,), dstates, dparameters = _cut(
        [next(found) if need else None for need in needed], (len(grads), 1, len(states), len(parameters))
    )
    before, between = (dgrads, None, [None] * ctx.tape), ([None] * len(packing), None, None)
    return *before, dx, *between, dstates, dparameters, [None] * len(noise), None, None


_recurrent.register_autograd(_backward, setup_context=_setup)
_recurrent_backward.register_autograd(_double_backward, setup_context=_setup_backward)
