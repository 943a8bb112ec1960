"""From what a user passes to a layer, to the layout of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from recollect.engine.layout import Layout, dense
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
        sizes, order = x.batch_sizes.tolist(), x.sorted_indices
        return Layout(sizes, sizes[0], order=None if order is None else order.numpy(force=True))
    batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    if lengths is None and batch:
        return dense(batch, steps, batch_first=batch_first)

    valid = _checked_lengths([] if lengths is None else lengths, batch, steps)
    in_order = bool((valid[:-1] >= valid[1:]).all())
    if in_order and batch and valid[-1] == steps > 0:
        return dense(batch, steps, batch_first=batch_first)
    ended = np.cumsum(np.bincount(valid))  # [longest + 1]: sequences of length t or less
    # At least one step, of no rows: then final states depend on every parameter, with a gradient of zeros.
    sizes = (batch - ended[:-1]).tolist() or [0]
    order = None if in_order else np.argsort(-valid, kind="stable")
    return Layout(sizes, batch, steps, batch_first=batch_first, order=order)


def _checked_lengths(lengths: torch.Tensor | Sequence[int], batch: int, steps: int) -> np.ndarray:
    try:
        sizes = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "lengths must be whole numbers", given=repr(lengths), expected="torch.int64, shape [B]"
        ) from error
    if sizes.shape != (batch,):
        raise InputError("lengths must have one number per row", given=tuple(sizes.shape), expected=f"[{batch}]")
    if not batch:
        return np.zeros(0, np.int64)
    if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
        raise InputError("lengths must be whole numbers", given=sizes.dtype, expected="torch.int64, shape [B]")
    valid = sizes.numpy(force=True).astype(np.int64)
    low, high = int(valid.min()), int(valid.max())
    if low < 0 or high > steps:
        raise InputError(
            "a length lies outside the sequence",
            given=f"lengths from {low} to {high}",
            expected=f"0 to T = {steps}",
            remedy="lengths count the valid steps of each row of x",
        )
    return valid
