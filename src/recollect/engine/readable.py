"""What a kernel may read: it is given addresses, so all that could be wrong behind one is refused before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from recollect.cells.cell import Cell
from recollect.engine.reference import PLAIN, Extras
from recollect.errors import InputError


def readable(tensors: Sequence[Any]) -> list[Any]:
    """The tensors with their numbers in memory as a kernel reads them; None stays None."""
    found = list(tensors)
    for place, each in enumerate(found):
        if each is not None and (not each.is_contiguous() or each.is_neg()):
            found[place] = each.contiguous().resolve_neg()
    return found


def check_readable(
    cell: Cell, x: torch.Tensor, inputs: int, own: Sequence[Any], extras: Extras, batch: int, hidden: int
) -> None:
    """Refuse tensors whose memory is not what the kernel will read.

    Args:
        cell: the step.
        x: the input, or that of a layer below.
        inputs: I, features of the input.
        own: the four parameters, the initial states, the vectors; None where there is none.
        extras: what the call adds.
        batch, hidden: B and H.

    Raises:
        InputError: a parameter, or what the call adds, has another shape, dtype or device than the layer needs.
    """
    dtype = x.dtype  # which is on the CPU
    wanted = _shapes(len(cell.gates) * hidden, inputs, hidden, batch, len(cell.states), len(cell.vectors))
    for place, (tensor, shape) in enumerate(zip(own, wanted, strict=True)):
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_cpu:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *cell.states, *cell.vectors)
            raise _misfit(names[place], tensor, f"{shape}, {dtype} on {x.device}")
    if extras is PLAIN:
        return
    added = [
        ("resets", extras.resets, [x.shape[:-1]], torch.bool),
        ("feed_mask", extras.feed_mask, [(batch, hidden)], x.dtype),
    ]
    added += [("keep", keep, [(*x.shape[:-1], hidden), (hidden,)], x.dtype) for keep in extras.keep]
    for name, tensor, shapes, dtype in added:
        if tensor is not None and (tensor.shape not in shapes or tensor.dtype != dtype or tensor.device != x.device):
            raise _misfit(name, tensor, f"{shapes[0]}, {dtype} on {x.device}")


@lru_cache(maxsize=128)
def _shapes(gates: int, inputs: int, hidden: int, batch: int, states: int, vectors: int) -> list[tuple[int, ...]]:
    """Of the four parameters, the initial states and the vectors."""
    of_parameters = [(gates, inputs), (gates, hidden), (gates,), (gates,)]
    return [*of_parameters, *[(1, batch, hidden)] * states, *[(hidden,)] * vectors]


def _misfit(name: str, tensor: torch.Tensor, expected: str) -> InputError:
    return InputError(
        f"{name} does not fit the layer and its input",
        given=f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}",
        expected=expected,
    )
