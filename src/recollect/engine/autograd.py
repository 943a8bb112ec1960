"""The llvm backend in PyTorch: one layer in one direction as an autograd Function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._C import _functorch, _len_torch_dispatch_stack  # pyright: ignore[reportAttributeAccessIssue]  (no stub)
from torch.autograd import forward_ad

from recollect.cells.cell import Cell
from recollect.engine import reference
from recollect.engine.buffers import Buffer
from recollect.engine.calls import DTYPES, backward, forward, prepare
from recollect.engine.layout import Layout
from recollect.engine.llvm.machine import host
from recollect.engine.llvm.problem import Problem
from recollect.engine.llvm.team import team
from recollect.engine.reference import Extras, Result, Weights
from recollect.engine.segments import Segmented, steps_of


def obstacle(x: torch.Tensor) -> str | None:
    """Why llvm cannot serve rows like ``x``, or None where it can."""
    return _foreign(x) or transformed(x)


def _foreign(x: torch.Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"a tensor on {x.device}"
    return None if x.dtype in DTYPES else str(x.dtype)


def could_serve(x: torch.Tensor) -> bool:
    """Whether the kernels could take numbers like those that ``x``, perhaps a compiler's stand-in, stands for."""
    return _foreign(x) is None


def transformed(x: torch.Tensor) -> str | None:
    """Why no kernel can take rows like ``x``: they stand for something else than numbers in memory."""
    return _without_memory(x) or ("forward-mode differentiation" if forward_ad._current_level >= 0 else None)


def can_be_written(x: torch.Tensor) -> bool:
    """Whether a kernel can write to a new tensor like ``x``, which has no derivative of any mode."""
    return (_foreign(x) or _without_memory(x)) is None


def _without_memory(x: torch.Tensor) -> str | None:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return "a call that is being traced"
    if _functorch.peek_interpreter_stack() is not None:
        return "a call inside a torch.func transform"
    if _len_torch_dispatch_stack():
        return "a call under a torch dispatch mode"
    if type(x) is not torch.Tensor and type(x) is not torch.nn.Parameter:
        return f"a {type(x).__name__}"
    return None


def description(x: torch.Tensor) -> str:
    """How llvm serves rows like ``x``, and why not the others."""
    machine, threads = host(), torch.get_num_threads()
    why_single = team().why_single
    using = f"one thread ({why_single})" if why_single else f"up to {threads} thread(s)"
    return (
        f"kernels for {machine.cpu}, {machine.lanes(DTYPES[x.dtype])} lanes of {DTYPES[x.dtype]}, {using}; "
        "torch and reference are slower; triton is not built yet"
    )


def run(
    cell: Cell,
    x: torch.Tensor,
    layout: Layout,
    states: Sequence[torch.Tensor] | None,
    weights: Weights,
    extras: Extras,
    *,
    reverse: bool,
) -> Result:
    """Run one layer in one direction; arguments and returns as `reference.run`."""
    if not layout.count:  # every row has length 0: nothing to do, and nothing that a kernel could be given
        return reference.run(cell, x, layout, states, weights, extras, reverse=reverse)
    problem, tensors = prepare(cell, x, layout, states, weights, extras, reverse)
    if torch.is_grad_enabled() and _any_requires_grad(tensors):
        if extras.checkpoint is not None and (steps := steps_of(problem, extras.checkpoint)) < problem.steps:
            return _result(problem, Segmented.apply(cell, layout, extras, reverse, steps, *tensors))
        return _result(problem, _Layer.apply(cell, layout, extras, reverse, problem, None, *tensors))
    outputs, final, _ = forward(problem, tensors, extras, save=False)
    return tuple(outputs), tuple(final)


def _result(problem: Problem, results: Any) -> Result:
    """The outputs and the final states, which a Function returns in one row."""
    wanted = len(problem.plan.outputs)
    return results[:wanted], results[wanted:]


def _any_requires_grad(tensors: Sequence[Any]) -> bool:
    for each in tensors:  # noqa: SIM110  (a generator would cost more than the look)
        if each is not None and each.requires_grad:
            return True
    return False


class Kept(NamedTuple):
    """What a forward pass left behind, as plain tensors, so that another call can have its derivatives.

    Attributes:
        outputs, final: as `reference.run` returns them.
        memory: of the kernel.
    """

    outputs: Sequence[torch.Tensor]
    final: Sequence[torch.Tensor]
    memory: torch.Tensor


def run_and_keep(
    cell: Cell,
    x: torch.Tensor,
    layout: Layout,
    states: Sequence[torch.Tensor],
    weights: Weights,
    extras: Extras,
    memory: torch.Tensor,
    *,
    reverse: bool,
) -> Kept:
    """As `run` without autograd, but what the backward pass reads is left in ``memory``; there are rows."""
    problem, tensors = prepare(cell, x, layout, states, weights, extras, reverse)
    outputs, final, _ = forward(problem, tensors, extras, save=True, memory=memory)
    return Kept(outputs, final, memory)


def replay(
    cell: Cell,
    x: torch.Tensor,
    layout: Layout,
    states: Sequence[torch.Tensor],
    weights: Weights,
    extras: Extras,
    kept: Kept,
    *,
    reverse: bool,
) -> Result:
    """What `run` returned with these arguments when it was kept, with its derivatives; nothing runs forward."""
    problem, tensors = prepare(cell, x, layout, states, weights, extras, reverse)
    return _result(problem, _Layer.apply(cell, layout, extras, reverse, problem, kept, *tensors))


class _Layer(torch.autograd.Function):
    """Derivatives of `run`; double backward goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        layout: Layout,
        extras: Extras,
        reverse: bool,
        problem: Problem,
        kept: Kept | None,
        *tensors: Any,
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.cell, ctx.layout, ctx.extras, ctx.reverse, ctx.problem = cell, layout, extras, reverse, problem
        if kept is None:
            outputs, final, ctx.memory = forward(problem, tensors, extras, save=True)
            return (*outputs, *final)
        ctx.memory = Buffer(kept.memory.dtype, problem.train.parts, kept.memory)
        return tuple(each.detach() for each in (*kept.outputs, *kept.final))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        needed = ctx.needs_input_grad[_BEFORE_TENSORS:]
        if torch.is_grad_enabled() or any(map(_is_batched, grads)):
            found = _differentiable_backward(ctx, needed, grads)
        else:
            found = backward(ctx.problem, ctx.memory, ctx.saved_tensors, ctx.extras, needed, grads)
        return (*[None] * _BEFORE_TENSORS, *found)


_BEFORE_TENSORS = 6  # arguments of _Layer.forward before the tensors


def _is_batched(grad: torch.Tensor | None) -> bool:
    """Whether it stands for many gradients at once (vmap over backward): it has no memory for a kernel to read."""
    return grad is not None and (_functorch.is_batchedtensor(grad) or _functorch.is_legacy_batchedtensor(grad))


def _differentiable_backward(
    ctx: Any, needed: Sequence[bool], grads: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """The backward pass in PyTorch's own operations, which can be differentiated and batched."""
    tensors, create_graph = ctx.saved_tensors, torch.is_grad_enabled()
    x, weight_ih, weight_hh, bias_ih, bias_hh, *rest = tensors
    states, vectors = rest[: len(ctx.cell.states)], rest[len(ctx.cell.states) :]
    weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, None, vectors)
    with torch.enable_grad():
        initial = None if states[0] is None else states
        outputs, final = reference.run(ctx.cell, x, ctx.layout, initial, weights, ctx.extras, reverse=ctx.reverse)
    pairs = [
        (out, grad)
        for out, grad in zip((*outputs, *final), grads, strict=True)
        if grad is not None and out.requires_grad
    ]
    wanted = [place for place, need in enumerate(needed) if need]
    found = torch.autograd.grad(
        [out for out, _ in pairs],
        [tensors[place] for place in wanted],
        [grad for _, grad in pairs],
        create_graph=create_graph,
        allow_unused=True,
    )
    result: list[torch.Tensor | None] = [None] * len(tensors)
    for place, grad in zip(wanted, found, strict=True):
        result[place] = grad
    return result
