"""From what a user passes to a layer, to the layout of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from recollect.engine.layout import Layout, Padded, dense
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
        sizes = x.batch_sizes.tolist()
        return Layout(sizes, sizes[0], order=_on_cpu(x.sorted_indices), inverse=_on_cpu(x.unsorted_indices))
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


def _on_cpu(order: torch.Tensor | None) -> torch.Tensor | None:
    return None if order is None else order.cpu()


def _checked_lengths(lengths: Any, batch: int) -> torch.Tensor:
    """The lengths as a kernel reads them; whether they fit into T is still to be seen."""
    try:
        sizes = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "lengths must be whole numbers", given=repr(lengths), expected="torch.int64, shape [B]"
        ) from error
    if sizes.shape != (batch,):
        raise InputError("lengths must have one number per row", given=tuple(sizes.shape), expected=f"[{batch}]")
    if not batch or (sizes.dtype is torch.int64 and sizes.is_cpu and sizes.is_contiguous()):  # most of them by far
        return sizes
    if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
        raise InputError("lengths must be whole numbers", given=sizes.dtype, expected="torch.int64, shape [B]")
    return sizes.to("cpu", torch.int64).contiguous()
