"""The llvm backend in PyTorch: one layer in all its directions, or a stack of layers, as an autograd Function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._C import _functorch, _len_torch_dispatch_stack  # pyright: ignore[reportAttributeAccessIssue]  (no stub)
from torch.autograd import forward_ad

from recollect.cells.cell import Cell
from recollect.engine import reference, wavefront
from recollect.engine.calls import DTYPES, backward, forward, of_each, prepare
from recollect.engine.layout import Layout
from recollect.engine.llvm.machine import host
from recollect.engine.llvm.problem import Problem
from recollect.engine.llvm.team import team
from recollect.engine.memory import is_foreign
from recollect.engine.readable import read_extras, read_input, read_own
from recollect.engine.reference import Direction, Extras, Result, Weights
from recollect.engine.saved import differentiable, must_be_differentiable, save, saved
from recollect.engine.segments import Segmented, steps_of


def obstacle(x: torch.Tensor) -> str | None:
    """Why llvm cannot serve rows like ``x``, or None where it can."""
    return _foreign(x) or transformed(x)


def _foreign(x: torch.Tensor) -> str | None:
    if not x.is_cpu:
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


def foreign_parameter(parameters: Sequence[torch.Tensor | None]) -> str | None:
    """Why no kernel can take these parameters: one of them stands for something else than numbers in memory."""
    for parameter in parameters:
        if parameter is not None and is_foreign(parameter):
            return f"a parameter that is a {type(parameter).__name__}"
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
    problems, tensors = prepare(cell, x, layout, directions)
    extras = [each.extras for each in directions]
    if not layout.count:  # every row has length 0: nothing to do, and nothing that a kernel could be given
        ways = [(each.extras, each.reverse) for each in directions]
        each = zip(problems, of_each(len(directions), tensors[1:]), ways, strict=True)
        return [by_reference(cell, problem, layout, x, own, way) for problem, own, way in each]
    if not (torch.is_grad_enabled() and any_requires_grad(tensors)):
        return [(tuple(out), tuple(final)) for out, final, _ in forward(problems, tensors, extras, save=False)]
    checkpoint = extras[0].checkpoint
    if checkpoint is not None and (steps := steps_of(problems[0], checkpoint)) < layout.rows.steps:
        each = zip(directions, of_each(len(directions), tensors[1:]), strict=True)
        flat = [Segmented.apply(cell, layout, direction, steps, x, *own) for direction, own in each]
        return [result for part in flat for result in _results(problems[:1], part)]
    ways = [(each.extras, each.reverse) for each in directions]
    return _results(problems, _Layer.apply(cell, layout, ways, problems, None, *tensors))


def _results(problems: Sequence[Problem], flat: Any) -> list[Result]:
    """The outputs and the final states of each direction, which a Function returns in one row."""
    wanted = len(problems[0].plan.outputs)
    return [(part[:wanted], part[wanted:]) for part in of_each(len(problems), flat)]


def any_requires_grad(tensors: Sequence[Any]) -> bool:
    """Whether any of them, where it is not None, requires a gradient."""
    for each in tensors:  # noqa: SIM110  (a generator would cost more than the look)
        if each is not None and each.requires_grad:
            return True
    return False


# What a call adds to a direction, and whether it is reversed.
Way = tuple[Extras, bool]


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
        ways: Sequence[Way],
        problems: Sequence[Problem],
        kept: Sequence[Kept] | None,
        *tensors: Any,
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.layout, ctx.problems, ctx.ways = cell, layout, problems, _emptied(ways)
        found = forward(problems, tensors, [extras for extras, _ in ways], save=True) if kept is None else kept
        save(ctx, tensors, [*(memory for _, _, memory in found), *_tensors_of(ways)])
        results = (result for outputs, final, _ in found for result in (*outputs, *final))
        return tuple(results if kept is None else (result.detach() for result in results))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        needed, count = ctx.needs_input_grad[_BEFORE_TENSORS:], len(ctx.problems)
        if must_be_differentiable(grads):
            tensors, others = differentiable(ctx, ctx.saved_tensors)
            ways = _filled(ctx.ways, others[count:])
            found = differentiable_backward(lambda: _Layer.reference(ctx, tensors, ways), tensors, needed, grads)
        else:
            tensors, others = saved(ctx, ctx.saved_tensors)
            extras = [extras for extras, _ in _filled(ctx.ways, others[count:])]
            found = backward(ctx.problems, others[:count], tensors, extras, needed, grads)
        return (*[None] * _BEFORE_TENSORS, *found)

    @staticmethod
    def reference(ctx: Any, tensors: Sequence[Any], ways: Sequence[Way]) -> list[torch.Tensor]:
        """What `forward` returned, by the reference."""
        x, each = tensors[0], zip(ctx.problems, of_each(len(ways), tensors[1:]), ways, strict=True)
        found = [by_reference(ctx.cell, problem, ctx.layout, x, own, way) for problem, own, way in each]
        return [each for outputs, final in found for each in (*outputs, *final)]


_BEFORE_TENSORS = 5  # arguments of _Layer.forward before the tensors


def run_layers(cell: Cell, x: torch.Tensor, layout: Layout, layers: Sequence[Direction]) -> list[Result] | None:
    """Run layers on top of each other at the same time, where that pays; arguments and results as `run`'s.

    Returns:
        The final states of each layer, the last one's with its outputs; None where they had better run one by one.
    """
    if not wavefront.pays(cell, x, layout, layers):
        return None
    problems, tensors = prepare(cell, x, layout, layers, stacked=True)
    if torch.is_grad_enabled() and any_requires_grad(tensors):
        ways = [(each.extras, each.reverse) for each in layers]
        flat = _Layers.apply(cell, layout, ways, problems, *tensors)
    else:
        flat = _of_layers(wavefront.forward(problems, tensors, [each.extras for each in layers], save=False))
    outputs = len(problems[-1].plan.outputs)
    finals = of_each(len(layers), flat[outputs:])
    return [*[((), final) for final in finals[:-1]], (flat[:outputs], finals[-1])]


def _of_layers(found: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """The outputs of the last layer and the final states of each, in one row."""
    return (*found[-1][0], *(state for _, final, *_ in found for state in final))


class _Layers(torch.autograd.Function):
    """Derivatives of `run_layers`; double backward goes through the reference, layer by layer."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        layout: Layout,
        ways: Sequence[Way],
        problems: Sequence[Problem],
        *tensors: Any,
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.layout, ctx.problems, ctx.ways = cell, layout, problems, _emptied(ways)
        found = wavefront.forward(problems, tensors, [extras for extras, _ in ways], save=True)
        memories, between = [memory for _, _, memory in found], [outputs[0] for outputs, _, _ in found[:-1]]
        save(ctx, tensors, [*memories, *between, *_tensors_of(ways)])
        return _of_layers(found)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        needed, count = ctx.needs_input_grad[_BEFORE_LAYERS:], len(ctx.problems)
        of_extras = 2 * count - 1  # before them stand the memories and what lies between the layers
        if must_be_differentiable(grads):
            tensors, others = differentiable(ctx, ctx.saved_tensors)
            ways = _filled(ctx.ways, others[of_extras:])
            found = differentiable_backward(lambda: _Layers.reference(ctx, tensors, ways), tensors, needed, grads)
        else:
            tensors, others = saved(ctx, ctx.saved_tensors)
            memories, between = others[:count], others[count:of_extras]
            extras = [extras for extras, _ in _filled(ctx.ways, others[of_extras:])]
            found = wavefront.backward(ctx.problems, memories, tensors, between, extras, needed, grads)
        return (*[None] * _BEFORE_LAYERS, *found)

    @staticmethod
    def reference(ctx: Any, tensors: Sequence[Any], ways: Sequence[Way]) -> Sequence[torch.Tensor]:
        """What `forward` returned, by the reference."""
        x, found = tensors[0], []
        for problem, own, way in zip(ctx.problems, of_each(len(ways), tensors[1:]), ways, strict=True):
            found.append(by_reference(ctx.cell, problem, ctx.layout, x, own, way))
            x = found[-1][0][0]
        return _of_layers(found)


_BEFORE_LAYERS = 4  # arguments of _Layers.forward before the tensors


def _tensors_of(ways: Sequence[Way]) -> list[torch.Tensor | None]:
    return [tensor for extras, _ in ways for tensor in extras.tensors]


def _emptied(ways: Sequence[Way]) -> list[Way]:
    """The ways without their tensors."""
    return [(extras.holding([None] * len(extras.tensors)), reverse) for extras, reverse in ways]


def _filled(ways: Sequence[Way], tensors: Sequence[Any]) -> list[Way]:
    """The ways with their tensors again, those of one after those of the other."""
    given = iter(tensors)
    return [(extras.holding([next(given) for _ in extras.tensors]), reverse) for extras, reverse in ways]


def by_reference(cell: Cell, problem: Problem, layout: Layout, x: torch.Tensor, own: Sequence[Any], way: Way) -> Result:
    """One layer and direction, whose tensors are ``own``, in PyTorch's own operations.

    These read past a tensor's memory, and take shapes for others; so it has to pass the gate to the kernels.
    """
    extras, reverse = read_extras(problem, way[0]), way[1]
    x, (ih, hh, bias_ih, bias_hh, *rest) = read_input(problem, x), read_own(problem, own)
    states, vectors = rest[: len(cell.states)], rest[len(cell.states) :]
    weights = Weights(ih, hh, bias_ih, bias_hh, None, vectors)
    initial = None if states[0] is None else states
    tap = None if extras.watched is None else extras.watched.hook
    return reference.run(cell, x, layout, initial, weights, extras, reverse=reverse, tap=tap)


def differentiable_backward(
    run: Callable[[], Sequence[torch.Tensor]],
    tensors: Sequence[Any],
    needed: Sequence[bool],
    grads: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """The backward pass of what ``run`` makes of the tensors in PyTorch's own operations, for these can be both."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        results = run()
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
