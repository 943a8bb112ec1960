"""The layers of a stack at the same time: a wavefront through layers and time.

A layer needs of the one below the steps that it is at, not all of them. So while one thread takes a layer through a
chunk of steps, another takes the layer below through the next chunk; on the way back, from the last layer and the last
chunk on. It is for layers of which one alone has no use for a second thread (`division.py`), and changes no bit, as no
sum depends on where a chunk begins. What layers hand to each other is in memory for all steps, in inference too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from recollect.cells.cell import Cell
from recollect.engine.calls import (
    Found,
    Part,
    backward_part,
    forward_part,
    kernels_of,
    new_outputs,
    of_each,
    result_of,
)
from recollect.engine.layout import Layout
from recollect.engine.llvm.division import layers_beside
from recollect.engine.llvm.problem import Problem
from recollect.engine.llvm.team import team
from recollect.engine.llvm.together import Strand, run_together
from recollect.engine.readable import read_input
from recollect.engine.reference import Direction, Extras

_Result = TypeVar("_Result")

# There is work for all threads once the layers have begun one after the other, a chunk apart: many chunks keep that
# short, but each goes through all gradients of the weights once. Measured: 8 chunks lose 5 % to 16, and 64 lose in
# training what they gain in inference.
_CHUNKS, _FEWEST_STEPS = 16, 8


def pays(cell: Cell, x: torch.Tensor, layout: Layout, layers: Sequence[Direction]) -> bool:
    """Whether layers on top of each other, the first with the input ``x``, had better run as a wavefront."""
    extras, threads = layers[0].extras, team().size(torch.get_num_threads())
    # Of products in bfloat16, pairs of rows begin where a chunk does: its size would change bits.
    if not layout.count or extras.checkpoint is not None or extras.bfloat16:
        return False
    kernels, hidden = kernels_of(cell, x.dtype, extras.variant), layers[0].weights.hh.shape[1]
    sizes = (x.shape[-1], hidden, layout.batch, layout.count, len(layout.sizes))
    return layers_beside(kernels, *sizes, threads, len(layers))


def forward(
    problems: Sequence[Problem], tensors: Sequence[Any], extras: Sequence[Extras], *, save: bool
) -> list[Found]:
    """As `calls.forward`, of layers that `calls.prepare` has ``stacked``."""
    x, parts = read_input(problems[0], tensors[0]), []
    for problem, own, added in zip(problems, of_each(len(problems), tensors[1:]), extras, strict=True):
        outputs = new_outputs(problem, x)
        parts.append(forward_part(problem, x, own, added, outputs, save))
        x = outputs[0]
    return _run(problems, parts)


def backward(
    problems: Sequence[Problem],
    memories: Sequence[torch.Tensor],
    tensors: Sequence[Any],
    between: Sequence[torch.Tensor],
    extras: Sequence[Extras],
    needed: Sequence[bool],
    grads: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """As `calls.backward`, of layers that `calls.prepare` has ``stacked``.

    Args:
        problems, memories, tensors, extras, needed: as there.
        between: the output of each layer but the last, which is the next one's input.
        grads: those of the outputs of the last layer, then of the final states of each layer in turn.
    """
    count, wanted = len(problems), of_each(len(problems), needed[1:])
    inputs = [read_input(problem, x) for problem, x in zip(problems, [tensors[0], *between], strict=True)]
    own = of_each(count, tensors[1:])
    outputs = len(problems[-1].plan.outputs)
    leaving, finals = grads[:outputs], of_each(count, grads[outputs:])
    # Below the lowest layer of which anything is needed, nothing is.
    lowest = 0 if needed[0] else next(layer for layer in range(count) if any(wanted[layer]))
    layers, parts = range(count - 1, lowest - 1, -1), []
    for layer in layers:
        dx = torch.empty_like(inputs[layer]) if layer > lowest or needed[0] else None
        parts.append(
            backward_part(
                problems[layer], memories[layer], inputs[layer], own[layer], extras[layer], dx, wanted[layer],
                [*leaving, *finals[layer]],
            )
        )  # fmt: skip
        leaving = [dx]
    found = _run([problems[layer] for layer in layers], parts)
    result: list[torch.Tensor | None] = [found[-1][0] if needed[0] else None, *[None] * (lowest * len(wanted[0]))]
    for _, *its in reversed(found):
        result += its
    return result


def _run(problems: Sequence[Problem], parts: Sequence[Part[_Result]]) -> list[_Result]:
    """Run the kernels of layers, each of which reads what the one before it writes."""
    steps = problems[0].rows.steps
    chunk_steps = max(_FEWEST_STEPS, -(-steps // _CHUNKS))
    strands = [Strand(*kernel.halves, arguments) for kernel, arguments in map(next, parts)]
    threads = min(len(strands), torch.get_num_threads())
    run_together(strands, threads, problems[0].team, -(-steps // chunk_steps), chunk_steps)
    return [result_of(part) for part in parts]
