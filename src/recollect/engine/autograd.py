"""The llvm backend in PyTorch: one layer, in all its directions, as an autograd Function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._C import _functorch, _len_torch_dispatch_stack  # pyright: ignore[reportAttributeAccessIssue]  (no stub)
from torch.autograd import forward_ad

from recollect.cells.cell import Cell
from recollect.engine import reference
from recollect.engine.buffers import Buffer
from recollect.engine.calls import DTYPES, backward, forward, of_each, prepare
from recollect.engine.layout import Layout
from recollect.engine.llvm.machine import host
from recollect.engine.llvm.problem import Problem
from recollect.engine.llvm.team import team
from recollect.engine.reference import Direction, Extras, Result, Weights
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


def run(cell: Cell, x: torch.Tensor, layout: Layout, directions: Sequence[Direction]) -> list[Result]:
    """Run one layer in all its directions; arguments and results as those of `reference.run`."""
    if not layout.count:  # every row has length 0: nothing to do, and nothing that a kernel could be given
        return [
            reference.run(cell, x, layout, states, weights, extras, reverse=reverse)
            for states, weights, extras, reverse, _ in directions
        ]
    problems, tensors = prepare(cell, x, layout, directions)
    extras = [each.extras for each in directions]
    if not (torch.is_grad_enabled() and _any_requires_grad(tensors)):
        return [(tuple(out), tuple(final)) for out, final, _ in forward(problems, tensors, extras, save=False)]
    checkpoint = extras[0].checkpoint
    if checkpoint is not None and (steps := steps_of(problems[0], checkpoint)) < problems[0].steps:
        each = zip(directions, of_each(len(directions), tensors[1:]), strict=True)
        flat = [Segmented.apply(cell, layout, direction, steps, x, *own) for direction, own in each]
        return [result for part in flat for result in _results(problems[:1], part)]
    ways = [(each.extras, each.reverse) for each in directions]
    return _results(problems, _Layer.apply(cell, layout, ways, problems, None, *tensors))


def _results(problems: Sequence[Problem], flat: Any) -> list[Result]:
    """The outputs and the final states of each direction, which a Function returns in one row."""
    wanted = len(problems[0].plan.outputs)
    return [(part[:wanted], part[wanted:]) for part in of_each(len(problems), flat)]


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
    cell: Cell, x: torch.Tensor, layout: Layout, directions: Sequence[Direction], memories: Sequence[torch.Tensor]
) -> list[Kept]:
    """As `run` without autograd, but what the backward pass reads is left in ``memories``; there are rows."""
    problems, tensors = prepare(cell, x, layout, directions)
    found = forward(problems, tensors, [each.extras for each in directions], save=True, memories=memories)
    return [Kept(out, final, memory) for (out, final, _), memory in zip(found, memories, strict=True)]


def replay(
    cell: Cell, x: torch.Tensor, layout: Layout, directions: Sequence[Direction], kept: Sequence[Kept]
) -> list[Result]:
    """What `run` returned with these arguments when it was kept, with its derivatives; nothing runs forward."""
    problems, tensors = prepare(cell, x, layout, directions)
    ways = [(each.extras, each.reverse) for each in directions]
    return _results(problems, _Layer.apply(cell, layout, ways, problems, kept, *tensors))


class _Layer(torch.autograd.Function):
    """Derivatives of `run`; double backward goes through the reference.

    ``ways`` has of each direction what the call adds and whether it is reversed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        layout: Layout,
        ways: Sequence[tuple[Extras, bool]],
        problems: Sequence[Problem],
        kept: Sequence[Kept] | None,
        *tensors: Any,
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.cell, ctx.layout, ctx.ways, ctx.problems = cell, layout, ways, problems
        if kept is None:
            found = forward(problems, tensors, [extras for extras, _ in ways], save=True)
            ctx.memories = [memory for _, _, memory in found]
            return tuple(each for outputs, final, _ in found for each in (*outputs, *final))
        ctx.memories = [
            Buffer(each.memory.dtype, problem.kept, each.memory) for each, problem in zip(kept, problems, strict=True)
        ]
        return tuple(each.detach() for outputs, final, _ in kept for each in (*outputs, *final))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        needed = ctx.needs_input_grad[_BEFORE_TENSORS:]
        if torch.is_grad_enabled() or any(map(_is_batched, grads)):
            found = _differentiable_backward(ctx, needed, grads)
        else:
            extras = [extras for extras, _ in ctx.ways]
            found = backward(ctx.problems, ctx.memories, ctx.saved_tensors, extras, needed, grads)
        return (*[None] * _BEFORE_TENSORS, *found)


_BEFORE_TENSORS = 5  # arguments of _Layer.forward before the tensors


def _is_batched(grad: torch.Tensor | None) -> bool:
    """Whether it stands for many gradients at once (vmap over backward): it has no memory for a kernel to read."""
    return grad is not None and (_functorch.is_batchedtensor(grad) or _functorch.is_legacy_batchedtensor(grad))


def _differentiable_backward(
    ctx: Any, needed: Sequence[bool], grads: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """The backward pass in PyTorch's own operations, which can be differentiated and batched."""
    tensors, create_graph = ctx.saved_tensors, torch.is_grad_enabled()
    x, own = tensors[0], of_each(len(ctx.ways), tensors[1:])
    results: list[torch.Tensor] = []
    with torch.enable_grad():
        for (extras, reverse), (ih, hh, bias_ih, bias_hh, *rest) in zip(ctx.ways, own, strict=True):
            states, vectors = rest[: len(ctx.cell.states)], rest[len(ctx.cell.states) :]
            weights = Weights(ih, hh, bias_ih, bias_hh, None, vectors)
            initial = None if states[0] is None else states
            outputs, final = reference.run(ctx.cell, x, ctx.layout, initial, weights, extras, reverse=reverse)
            results += (*outputs, *final)
    pairs = [(out, grad) for out, grad in zip(results, grads, strict=True) if grad is not None and out.requires_grad]
    wanted = [place for place, need in enumerate(needed) if need]
    found = torch.autograd.grad(
        [out for out, _ in pairs],
        [tensors[place] for place in wanted],
        [grad for _, grad in pairs],
        create_graph=create_graph,
        allow_unused=True,
    )
    every: list[torch.Tensor | None] = [None] * len(tensors)
    for place, grad in zip(wanted, found, strict=True):
        every[place] = grad
    return every
