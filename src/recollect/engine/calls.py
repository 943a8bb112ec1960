"""What a call of a layer's kernels comes to: tensors in, tensors out; nothing of autograd."""

from __future__ import annotations

import ctypes
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch

from recollect.cells.cell import Cell
from recollect.engine.buffers import Buffer, part_addresses
from recollect.engine.layout import Layout
from recollect.engine.llvm.addresses import backward_addresses, forward_addresses
from recollect.engine.llvm.division import divide
from recollect.engine.llvm.kernels import Kernels, kernels_for
from recollect.engine.llvm.problem import Parts, Pass, Problem
from recollect.engine.llvm.team import Team, team
from recollect.engine.llvm.together import Strand, run_together
from recollect.engine.plan import Variant
from recollect.engine.readable import TYPES, read_extras, read_gradients, read_input, read_kept, read_own
from recollect.engine.reference import PLAIN, Direction, Extras
from recollect.engine.watched import Watched
from recollect.errors import InputError

_Result = TypeVar("_Result")

# The outputs, the final states, and the memory that holds what the backward pass reads, if there is to be one.
Found = tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor | None]
_address = torch.Tensor.data_ptr

DTYPES = {dtype: name for name, dtype in TYPES.items()}


def kernels_of(cell: Cell, dtype: torch.dtype, variant: Variant) -> Kernels:
    """The kernels that serve such a call."""
    return kernels_for(cell.graph, cell.gates, cell.states, cell.vectors, DTYPES[dtype], variant)


def prepare(
    cell: Cell, x: torch.Tensor, layout: Layout, directions: Sequence[Direction], *, stacked: bool = False
) -> tuple[list[Problem], list[Any]]:
    """The sizes of each direction of a layer, and the tensors that its kernels read.

    Args:
        cell, x, layout, directions: as for `reference.run`.
        stacked: each is a layer of its own, on the outputs of the one before.

    Returns:
        The problems, and x followed by the tensors of each direction: the four parameters, the initial states, the
        vectors; None where there is none.
    """
    make = kept_problem if layout.kept else new_problem
    inputs, threads, workers = x.shape[-1], torch.get_num_threads(), team()
    of_layer = 1 if stacked else len(directions)
    problems: list[Problem] = []
    tensors: list[Any] = [x]
    for states, weights, extras, reverse, _ in directions:
        ih, hh, bias_ih, bias_hh, _, vectors = weights
        if hh.dim() != 2:  # which sizes follow from
            raise InputError("weight_hh must be a matrix", given=tuple(hh.shape), expected="[G * H, H]")
        hidden = hh.shape[1]
        own = (ih, hh, bias_ih, bias_hh, *(states or (None,) * len(cell.states)), *vectors)
        kind = (cell, x.dtype, extras.variant)
        problems.append(make(kind, inputs, hidden, layout, reverse, threads, workers, of_layer))
        tensors += own
        if stacked:
            inputs = hidden
    return problems, tensors


def new_problem(
    kind: tuple[Cell, torch.dtype, Variant],
    inputs: int,
    hidden: int,
    layout: Layout,
    reverse: bool,
    threads: int,
    workers: Team,
    directions: int,
) -> Problem:
    """The sizes of a direction of a layer: the kind of its kernels, I, H, how the batch lies, whether backward in time,
    among how many threads of which team, and how many directions the layer has."""
    kernels, rows, batch = kernels_of(*kind), layout.rows, layout.batch
    division = divide(kernels, inputs, hidden, batch, rows.count, rows.steps, workers.size(threads), directions)
    longest = 1 << (rows.steps - 1).bit_length()  # so that few differ
    made = sized_problem(kernels, inputs, hidden, batch, layout.unequal, longest, reverse, division, workers)
    return made.along(rows)


# For a layout that is kept all is found in one look; for others, what their sizes have in common.
kept_problem, sized_problem = (lru_cache(maxsize=128)(make) for make in (new_problem, Problem))


def _fed(extras: Extras, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The initial states of the kernel: the cell's, and the masked output where W_hh multiplies that."""
    return [*states, *(() if extras.feed_mask is None else (states[0] * extras.feed_mask,))]


def _given(problem: Problem, extras: Extras) -> tuple[list[int], Any]:
    """The arguments of the slots of `given_slots`, and what owns the memory that they point into."""
    if extras is PLAIN:
        return [], None
    hidden, arguments = problem.hidden, []
    extras = read_extras(problem, extras)
    for keep in extras.keep:
        arguments += (keep.data_ptr(), hidden if keep.dim() > 1 else 0, 0)
    if extras.feed_mask is not None:
        arguments += (extras.feed_mask.data_ptr(), 0, hidden)
    flags = None if extras.resets is None else extras.resets.long()
    if flags is not None:
        arguments.append(flags.data_ptr())
    return arguments, (extras, flags)


# What a direction's part of a call does before its kernel runs, and after.
Part = Generator["tuple[Pass, ctypes.Array[ctypes.c_int64]]", None, _Result]


def _run(problems: Sequence[Problem], parts: Sequence[Part[_Result]]) -> list[_Result]:
    """Run the kernels of all directions of a layer."""
    if len(parts) == 1:
        kernel, arguments = next(parts[0])
        kernel.run(arguments)
        return [result_of(parts[0])]
    kernels = [next(part) for part in parts]
    if problems[0].division.beside:
        strands = [Strand(kernel.address, 0, arguments) for kernel, arguments in kernels]
        run_together(strands, len(strands), problems[0].team)
    else:
        for kernel, arguments in kernels:
            kernel.run(arguments)
    return [result_of(part) for part in parts]


def result_of(part: Part[_Result]) -> _Result:
    """The result of a part whose kernel has run."""
    try:
        next(part)
    except StopIteration as end:
        return end.value
    raise AssertionError("a part of a call runs one kernel")


def of_each(directions: int, values: Sequence[Any]) -> list[Any]:
    """The share of each direction, where one row has as many values for each, the first direction's first."""
    if directions == 1:  # most calls by far
        return [values]
    count = len(values) // directions
    return [values[first : first + count] for first in range(0, len(values), count)]


def forward(
    problems: Sequence[Problem],
    tensors: Sequence[Any],
    extras: Sequence[Extras],
    *,
    save: bool,
    memories: Sequence[torch.Tensor | None] | None = None,
    outputs: list[torch.Tensor] | None = None,
) -> list[Found]:
    """Run the forward kernels of a layer.

    Args:
        problems, tensors: of `prepare`.
        extras: what the call adds to each direction.
        save: keep what `backward` reads.
        memories: where each direction keeps it, if not in memory of ours.
        outputs: where the outputs go, of the one direction that there is; to new tensors if None.

    Returns:
        Of each direction the outputs, the final states, and with ``save`` the memory that holds what `backward` reads.
    """
    x = read_input(problems[0], tensors[0])
    own = of_each(len(problems), tensors[1:])
    parts = [
        forward_part(problem, x, parameters, added, outputs or new_outputs(problem, x), save, memory)
        for problem, parameters, added, memory in zip(
            problems, own, extras, memories or [None] * len(problems), strict=True
        )
    ]
    return _run(problems, parts)


def new_outputs(problem: Problem, x: torch.Tensor) -> list[torch.Tensor]:
    """Room for the outputs of one direction."""
    shape = (*x.shape[:-1], problem.hidden)
    return [x.new_empty(shape) for _ in problem.plan.outputs]


def forward_part(
    problem: Problem,
    x: torch.Tensor,
    own: Sequence[Any],
    extras: Extras,
    outputs: list[torch.Tensor],
    save: bool,
    memory: torch.Tensor | None = None,
) -> Part[Found]:
    """Prepare the forward kernel of one direction, whose tensors are ``own``, and take its results once it has run.

    x and ``outputs`` are a kernel's to use.
    """
    own = read_own(problem, own)
    rest = own[4:]
    plan, batch, hidden, width = problem.plan, problem.batch, problem.hidden, problem.width
    count = len(rest) - len(plan.vectors)
    initial, vectors = rest[:count], rest[count:]
    if initial[0] is None:
        starts = [problem.zeros] * len(plan.states)
    else:
        initial = _fed(extras, initial)
        starts = map(_address, initial)
    final = [x.new_empty((1, batch, width)) for _ in plan.states]
    given, alive = _given(problem, extras)
    kernel = problem.train if save else problem.infer
    scratch, kept = Buffer.scratch(kernel, x.dtype), None
    if save and memory is None:
        buffer = Buffer(x.dtype, problem.kept)
        memory, kept = buffer.tensor(), buffer.addresses
    elif save and memory is not None:
        kept = part_addresses(memory, x.dtype, problem.kept)
    read = x.data_ptr(), *[0 if each is None else each.data_ptr() for each in own[:4]]
    written = map(_address, outputs), map(_address, final)
    addresses = forward_addresses(plan, read, *written, starts, map(_address, vectors), scratch.addresses, kept, given)
    yield kernel, kernel.arguments(addresses, problem.rows.values)
    scratch.give_back(kernel)
    del final[count:], alive, scratch
    if width != hidden:
        final = [each[:, :, :hidden].contiguous() for each in final]
    begun = problem.rows.begun
    if begun < batch:  # rows of length 0
        for each, start in zip(final, initial, strict=False):
            each[:, begun:] = 0 if start is None else start[:, begun:]
    if memory is not None and extras.watched is not None:
        _show_forward(extras.watched, problem, memory, final, vectors)
    return outputs, final, memory


def _show_forward(
    watched: Watched,
    problem: Problem,
    memory: torch.Tensor,
    final: Sequence[torch.Tensor],
    vectors: Sequence[torch.Tensor],
) -> None:
    plan, count = problem.plan, problem.rows.count
    before = _states_in(memory, problem.kept, problem)
    start = problem.kept.starts[len(plan.states)]
    saved = memory[start : start + count * plan.saved * problem.width].view(count, plan.saved, problem.width)
    leaves = {f"prev.{name}": state for name, state in zip(plan.states, before, strict=False)}
    leaves |= {f"saved.{place}": saved[:, place, : problem.hidden] for place in range(plan.saved)}
    leaves |= {f"vec.{name}": vector for name, vector in zip(plan.vectors, vectors, strict=True)}
    watched.saw_forward(plan.activations, before, final, leaves)


def _states_in(memory: torch.Tensor, parts: Parts, problem: Problem) -> list[torch.Tensor]:
    """The first parts of a kernel's memory, which are those of the cell's states, as packed rows [N, H]."""
    size = problem.rows.count * problem.width
    own = zip(parts.starts, problem.plan.own_states, strict=False)
    return [memory[start : start + size].view(-1, problem.width)[:, : problem.hidden] for start, _ in own]


def backward(
    problems: Sequence[Problem],
    memories: Sequence[torch.Tensor],
    tensors: Sequence[Any],
    extras: Sequence[Extras],
    needed: Sequence[bool],
    grads: Sequence[torch.Tensor | None],
    *,
    dx: torch.Tensor | None = None,
) -> list[torch.Tensor | None]:
    """Gradients of ``tensors``, None where not needed.

    Args:
        problems, tensors, extras: as for `forward`.
        memories: what it left.
        needed: of which tensors.
        grads: those of the outputs and the final states of the first direction, then of the next.
        dx: room for the gradient of x, of the one direction that there is; new memory if None.
    """
    x, count = read_input(problems[0], tensors[0]), len(problems)
    own, wanted, leaving = of_each(count, tensors[1:]), of_each(count, needed[1:]), of_each(count, grads)
    each = zip(problems, memories, own, extras, wanted, leaving, strict=True)
    parts = []
    for problem, memory, own, added, wanted, its in each:
        into = torch.empty_like(x) if needed[0] and dx is None else dx
        parts.append(backward_part(problem, memory, x, own, added, into, wanted, its))
    (dx, *result), *others = _run(problems, parts)
    for its_dx, *its in others:
        dx = None if dx is None else dx + its_dx
        result += its
    return [dx, *result]


def of_sums(problem: Problem, sums: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of the two biases, which may be one tensor, and of the vectors: the sums over rows hold them."""
    plan, hidden, gates = problem.plan, problem.hidden, problem.gates
    dbias = sums if len(sums) == gates else sums[:gates]
    found = [dbias, sums[problem.gate_columns :][:gates] if plan.split else dbias]
    if plan.vectors:
        found += sums[problem.columns - len(plan.vectors) * hidden : problem.columns].split(hidden)
    return found


def backward_part(
    problem: Problem,
    memory: torch.Tensor,
    x: torch.Tensor,
    own: Sequence[Any],
    extras: Extras,
    dx: torch.Tensor | None,
    needed: Sequence[bool],
    grads: Sequence[torch.Tensor | None],
) -> Part[list[Any]]:
    """Prepare the backward kernel of one direction, whose tensors are ``own``, and take its results once it has run.

    ``dx`` is room for the gradient of x.
    """
    weight_ih, weight_hh, _, _, *rest = read_own(problem, own)
    grads, memory = read_gradients(problem, grads), read_kept(problem, memory)
    plan, hidden = problem.plan, problem.hidden
    count, wanted = len(rest) - len(plan.vectors), len(plan.outputs)
    dstates = x.new_zeros(len(plan.states), problem.batch, problem.grad_width)
    for place, grad in enumerate(grads[wanted:]):
        if grad is not None:
            dstates[place, :, :hidden] = grad[0]
    restarts = torch.zeros_like(dstates) if plan.resets else None
    grads_at = [_address(each) for each in (dstates, restarts) if each is not None]
    of_state = problem.batch * problem.grad_width * x.itemsize
    sums = x.new_empty(problem.sums)
    dw_ih = dw_hh = None
    if needed[0] or needed[1]:
        dw_ih, dw_hh = torch.empty_like(weight_ih), torch.empty_like(weight_hh)
    doutputs = grads[:wanted]
    given, alive = _given(problem, extras)
    watched = extras.watched
    kernel = problem.backward if watched is None else problem.watched_backward
    leaving = None if watched is None else Buffer(x.dtype, problem.leaving)
    scratch = Buffer.scratch(kernel, x.dtype)
    addresses = backward_addresses(
        problem,
        (x.data_ptr(), weight_ih.data_ptr(), weight_hh.data_ptr()),
        [0 if each is None else each.data_ptr() for each in (dx, dw_ih, dw_hh, sums)],
        problem.kept.addresses(memory.data_ptr(), x.itemsize),
        [0 if each is None else each.data_ptr() for each in doutputs],
        [first + of_state * place for first in grads_at for place in range(len(plan.states))],
        map(_address, rest[count:]),
        scratch.addresses,
        given,
        () if leaving is None else leaving.addresses,
    )
    yield kernel, kernel.arguments(addresses, problem.rows.values)
    scratch.give_back(kernel)
    del alive, doutputs, scratch
    if watched is not None and leaving is not None:
        watched.saw_backward(_states_in(leaving.tensor(), problem.leaving, problem))
    dinitial: list[Any] = [None] * count
    if any(needed[4 : 4 + count]):
        dinitial = list((dstates if restarts is None else dstates + restarts)[:, :, :hidden].split(1))
        if extras.feed_mask is not None:
            dinitial[0] = dinitial[0] + dinitial.pop() * extras.feed_mask
    dbias_ih, dbias_hh, *dvectors = of_sums(problem, sums)
    found = [dw_ih, dw_hh, dbias_ih, dbias_hh, *dinitial, *dvectors]
    return [dx, *(grad if wanted else None for grad, wanted in zip(found, needed, strict=True))]
