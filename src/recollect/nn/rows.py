"""From what a user passes to a layer, to the layout of its rows."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from recollect.engine.layout import Layout, Padded, dense
from recollect.engine.memory import check_memory
from recollect.engine.readable import addresses, readable
from recollect.errors import InputError


def lay_out(
    x: torch.Tensor | PackedSequence, lengths: torch.Tensor | Sequence[int] | None, *, batch_first: bool
) -> Layout:
    """Decide where the rows of a batch stand.

    Args:
        x: [T, B, I], [B, T, I] with ``batch_first``, or a PackedSequence.
        lengths: [B], valid steps of each row, in any order; 0 is allowed.
        batch_first: layout of a dense ``x``.

    Raises:
        InputError: shapes or lengths do not fit.
    """
    if isinstance(x, PackedSequence):
        if lengths is not None:
            raise InputError("a PackedSequence has its lengths already", given="lengths=", remedy="leave it out")
        sizes = checked_sizes(x)
        order, inverse = _checked_order(x, sizes[0])
        return Layout(sizes, sizes[0], order=order, inverse=inverse)
    batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    if lengths is None and batch:
        return dense(batch, steps, batch_first=batch_first)

    if not batch:
        if lengths is not None:
            _checked_lengths(lengths, batch)
        return Layout([0], 0, steps, batch_first=batch_first)
    layout = Padded(_checked_lengths(lengths, batch), steps, batch_first=batch_first)
    if layout.shortest < 0 or layout.longest > steps:
        raise InputError(
            "a length lies outside the sequence",
            given=f"lengths from {layout.shortest} to {layout.longest}",
            expected=f"0 to T = {steps}",
            remedy="lengths count the valid steps of each row of x",
        )
    return dense(batch, steps, batch_first=batch_first) if layout.shortest == steps > 0 else layout


def checked_sizes(x: PackedSequence) -> list[int]:
    """The rows of each step of a PackedSequence, which anybody can make of tensors that do not fit together."""
    sizes = x.batch_sizes
    shown: Any = type(sizes).__name__
    if isinstance(sizes, torch.Tensor):
        shown = f"{sizes.dtype} {tuple(sizes.shape)} on {sizes.device}"
        if sizes.dtype is torch.int64 and sizes.dim() == 1 and sizes.is_cpu and len(sizes):
            check_memory("batch_sizes", sizes)
            rows = sizes.tolist()
            if rows[-1] >= 1 and all(map(operator.ge, rows, rows[1:])) and sum(rows) == len(x.data):
                return rows
            shown = f"{rows if len(rows) <= 10 else f'{rows[:10]}...'}, {sum(rows)} in all, for {len(x.data)} rows"
    raise InputError(
        "the batch_sizes of the PackedSequence do not fit its data",
        given=shown,
        expected="torch.int64 [T] on cpu: rows of each step, at least 1, never growing, as many in all as data has",
        remedy="make it with torch.nn.utils.rnn.pack_padded_sequence or pack_sequence",
    )


def _checked_order(x: PackedSequence, batch: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Where each sequence was before they were packed and where it is since, [B] each; None where nothing was moved."""
    given = (x.sorted_indices, x.unsorted_indices)
    if given[0] is None and given[1] is None:
        return None, None
    order, inverse = (_places(indices, batch) for indices in given)
    if order is None or inverse is None or not np.array_equal(order.numpy()[inverse.numpy()], np.arange(batch)):
        raise InputError(
            "sorted_indices and unsorted_indices of the PackedSequence do not belong to a batch like this",
            given=" and ".join("None" if indices is None else str(indices.tolist()[:10]) for indices in given),
            expected=f"torch.int64 [{batch}], a permutation and its inverse",
            remedy="make it with torch.nn.utils.rnn.pack_padded_sequence or pack_sequence",
        )
    return order, inverse


def _places(indices: Any, batch: int) -> torch.Tensor | None:
    """The indices on the CPU, or None unless there are B of them and each is a place in the batch."""
    if not isinstance(indices, torch.Tensor) or indices.dtype is not torch.int64 or indices.shape != (batch,):
        return None
    indices = moved("the indices of a PackedSequence", indices, torch.device("cpu"))
    return indices if indices.min() >= 0 and indices.max() < batch else None


def _checked_lengths(lengths: Any, batch: int) -> torch.Tensor:
    """The lengths as a kernel reads them; whether they fit into T is still to be seen."""
    try:
        # Elsewhere than on the CPU only if it is there already, whatever torch's default device is.
        sizes = lengths if isinstance(lengths, torch.Tensor) else torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "lengths must be whole numbers", given=repr(lengths), expected="torch.int64, shape [B]"
        ) from error
    if sizes.shape != (batch,):
        raise InputError("lengths must have one number per row", given=tuple(sizes.shape), expected=f"[{batch}]")
    if not batch or addresses([sizes], [(batch,)], torch.int64):  # most of them by far
        return sizes
    if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
        raise InputError("lengths must be whole numbers", given=sizes.dtype, expected="torch.int64, shape [B]")
    sizes = moved("lengths", sizes, torch.device("cpu")).to(torch.int64)
    return readable([sizes], [(batch,)], torch.int64, ["lengths"])[0]


def moved(name: str, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; InputError if it has no numbers that could go there."""
    check_memory(name, tensor)
    if tensor.is_meta and device.type != "meta":
        raise InputError(f"{name} cannot be on the meta device, which holds no numbers", given=tuple(tensor.shape))
    return tensor.to(device)
