"""What a call of a layer's kernels comes to: tensors in, tensors out; nothing of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from recollect.cells.cell import Cell
from recollect.engine.buffers import Buffer
from recollect.engine.layout import Layout
from recollect.engine.llvm.division import divide
from recollect.engine.llvm.kernels import Kernels, kernels_for
from recollect.engine.llvm.problem import Problem
from recollect.engine.llvm.team import Team, team
from recollect.engine.plan import Variant
from recollect.engine.readable import check_readable, readable
from recollect.engine.reference import PLAIN, Extras, Weights

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def kernels_of(cell: Cell, dtype: torch.dtype, variant: Variant) -> Kernels:
    """The kernels that serve such a call."""
    return kernels_for(cell.graph, cell.gates, cell.states, cell.vectors, DTYPES[dtype], variant)


def prepare(
    cell: Cell,
    x: torch.Tensor,
    layout: Layout,
    states: Sequence[torch.Tensor] | None,
    weights: Weights,
    extras: Extras,
    reverse: bool,
) -> tuple[Problem, tuple[Any, ...]]:
    """The sizes of a call and the tensors that its kernels read, which have been checked."""
    ih, hh, bias_ih, bias_hh, _, vectors = weights
    given = states or (None,) * len(cell.states)
    tensors = (x, ih, hh, bias_ih, bias_hh, *given, *vectors)
    hidden = hh.shape[1]
    check_readable(cell, tensors, extras, layout.batch, hidden)
    make = kept_problem if layout.kept else _problem
    kind = (cell, x.dtype, extras.variant)
    return make(kind, x.shape[-1], hidden, layout, reverse, torch.get_num_threads(), team()), tensors


def _problem(
    kind: tuple[Cell, torch.dtype, Variant],
    inputs: int,
    hidden: int,
    layout: Layout,
    reverse: bool,
    threads: int,
    workers: Team,
) -> Problem:
    kernels, sizes, batch = kernels_of(*kind), layout.sizes, layout.batch
    division = divide(kernels, inputs, hidden, batch, layout.count, len(sizes), workers.size(threads))
    return Problem(kernels, inputs, hidden, batch, sizes, layout.places, reverse, division, workers)


kept_problem = lru_cache(maxsize=128)(_problem)


def _fed(extras: Extras, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The initial states of the kernel: the cell's, and the masked output where W_hh multiplies that."""
    return [*states, *(() if extras.feed_mask is None else (states[0] * extras.feed_mask,))]


def _given(problem: Problem, extras: Extras) -> tuple[list[int], list[torch.Tensor]]:
    """The arguments of the slots of `given_slots`, and the tensors that they point into."""
    if extras is PLAIN:
        return [], []
    hidden, arguments = problem.hidden, []
    alive = readable(extras.keep)
    for keep in alive:
        arguments += (keep.data_ptr(), hidden if keep.dim() > 1 else 0, 0)
    if extras.feed_mask is not None:
        alive += readable([extras.feed_mask])
        arguments += (alive[-1].data_ptr(), 0, hidden)
    if extras.resets is not None:
        alive.append(extras.resets.long().contiguous())
        arguments.append(alive[-1].data_ptr())
    return arguments, alive


def forward(
    problem: Problem, tensors: Sequence[Any], extras: Extras, *, save: bool, memory: torch.Tensor | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor], Buffer]:
    """Run the forward kernel: outputs, final states, and the memory that holds what `backward` reads."""
    x, weight_ih, weight_hh, bias_ih, bias_hh, *rest = readable(tensors)
    plan, batch, hidden, width = problem.plan, problem.batch, problem.hidden, problem.width
    count = len(rest) - len(plan.vectors)
    initial, vectors = rest[:count], rest[count:]
    if initial[0] is None:
        starts = [problem.zeros] * len(plan.states)
    else:
        initial = _fed(extras, initial)
        starts = [each.data_ptr() for each in initial]
    outputs = [x.new_empty((*x.shape[:-1], hidden)) for _ in plan.outputs]
    final = [x.new_empty((1, batch, width)) for _ in plan.states]
    given, alive = _given(problem, extras)
    kernel = problem.train if save else problem.infer
    buffer = Buffer(x.dtype, kernel.parts, memory)
    kernel.run(
        x.data_ptr(),
        weight_ih.data_ptr(),
        weight_hh.data_ptr(),
        0 if bias_ih is None else bias_ih.data_ptr(),
        0 if bias_hh is None else bias_hh.data_ptr(),
        *buffer.addresses,
        *[each.data_ptr() for each in outputs],
        *starts,
        *[each.data_ptr() for each in final],
        *[each.data_ptr() for each in vectors],
        *given,
    )
    del final[count:], alive
    if width != hidden:
        final = [each[:, :, :hidden].contiguous() for each in final]
    if problem.begun < batch:  # rows of length 0
        for each, start in zip(final, initial, strict=False):
            each[:, problem.begun :] = 0 if start is None else start[:, problem.begun :]
    return outputs, final, buffer


def backward(
    problem: Problem,
    memory: Buffer,
    tensors: Sequence[Any],
    extras: Extras,
    needed: Sequence[bool],
    grads: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """Gradients of ``tensors`` (None where not needed) from those of the outputs and the final states."""
    x, weight_ih, weight_hh, _, _, *rest = readable(tensors)
    plan, hidden, gates = problem.plan, problem.hidden, problem.gates
    count, wanted = len(rest) - len(plan.vectors), len(plan.outputs)
    dstates = [x.new_zeros(problem.batch, problem.grad_width) for _ in plan.states]
    for into, grad in zip(dstates, grads[wanted:], strict=False):
        if grad is not None:
            into[:, :hidden] = grad[0]
    restarts = [torch.zeros_like(each) for each in dstates] if plan.resets else []
    sums = x.new_zeros(problem.sums)
    dx = torch.empty_like(x) if needed[0] else None
    dw_ih, dw_hh = (torch.zeros_like(w) if needed[1] or needed[2] else None for w in (weight_ih, weight_hh))
    zeros = x.new_zeros(hidden) if any(grad is None for grad in grads[:wanted]) else x
    doutputs = [zeros if grad is None else grad for grad in readable(grads[:wanted])]
    given, alive = _given(problem, extras)
    kernel = problem.backward
    scratch = Buffer(x.dtype, kernel.parts)
    kernel.run(
        x.data_ptr(),
        0 if dx is None else dx.data_ptr(),
        weight_ih.data_ptr(),
        weight_hh.data_ptr(),
        0 if dw_ih is None else dw_ih.data_ptr(),
        0 if dw_hh is None else dw_hh.data_ptr(),
        sums.data_ptr(),
        *memory.addresses[3:],
        *[each.data_ptr() for each in doutputs],
        *[0 if each is zeros else hidden for each in doutputs],
        *[each.data_ptr() for each in dstates],
        *[each.data_ptr() for each in restarts],
        *[each.data_ptr() for each in rest[count:]],
        *given,
        *scratch.addresses,
    )
    del alive
    dinitial = [each[:, :hidden] for each in dstates]
    if plan.resets:
        dinitial = [each + restart[:, :hidden] for each, restart in zip(dinitial, restarts, strict=True)]
    if extras.feed_mask is not None:
        dinitial[0] = dinitial[0] + dinitial.pop() * extras.feed_mask
    dinitial = [each.unsqueeze(0) if needed else None for each, needed in zip(dinitial, needed[5:], strict=False)]
    dbias_ih = sums[:gates]
    dbias_hh = sums[gates : 2 * gates] if plan.split else dbias_ih
    dvectors = sums[problem.columns - len(plan.vectors) * hidden : problem.columns]
    found = [
        dx,
        dw_ih,
        dw_hh,
        dbias_ih,
        dbias_hh,
        *dinitial,
        *(dvectors.split(hidden) if plan.vectors else ()),
    ]
    return [grad if wanted else None for grad, wanted in zip(found, needed, strict=True)]
