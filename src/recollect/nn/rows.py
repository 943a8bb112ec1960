"""The one place where layouts are converted.

Kernels know a single layout: *packed rows*, a matrix [N, features] that holds the rows of step 0, then
those of step 1, and so on, with the longest sequence first, so that ``batch_sizes[t]`` rows are active
at step t. It is `PackedSequence`'s own layout; a dense time-major batch is the case in which all rows are
active at every step, and needs no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import PackedSequence

from recollect.errors import InputError


@dataclass(frozen=True)
class Rows:
    """Packed rows and the way back.

    Attributes:
        data: [N, features].
        batch_sizes: active rows at each step.
        batch: B.
        order: [B] original index of each sorted row, or None where rows are in their original order.
        inverse: [B] sorted position of each original row, or None.
        padded: (T, batch_first, index) for a padded batch with lengths: ``index`` [N] is the place of each
            packed row in the padded batch, flattened over its two leading dimensions.
        batch_first, unbatched: how a dense batch came.
        packed: it came as a PackedSequence.
    """

    data: torch.Tensor
    batch_sizes: Sequence[int]
    batch: int
    order: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    padded: tuple[int, torch.Tensor] | None = None
    batch_first: bool = False
    unbatched: bool = False
    packed: PackedSequence | None = None

    def sort(self, state: torch.Tensor) -> torch.Tensor:
        """Bring [B, H] into the order of the rows."""
        return state if self.order is None else state.index_select(0, self.order)

    def unsort(self, state: torch.Tensor) -> torch.Tensor:
        """Bring [layers, B, H] back into the caller's order."""
        return state if self.inverse is None else state.index_select(1, self.inverse)

    def restore(self, y: torch.Tensor) -> torch.Tensor | PackedSequence:
        """Bring an output [N, features] into the layout in which the input came."""
        if self.packed is not None:
            return PackedSequence(y, self.packed.batch_sizes, self.packed.sorted_indices, self.packed.unsorted_indices)
        features = y.shape[1]
        if self.padded is not None:
            steps, index = self.padded
            leading = (self.batch, steps) if self.batch_first else (steps, self.batch)
            y = y.new_zeros(steps * self.batch, features).index_copy(0, index, y).view(*leading, features)
        else:
            y = y.view(len(self.batch_sizes), self.batch, features)
            if self.batch_first and not self.unbatched:
                y = y.transpose(0, 1)
        return y.squeeze(0 if self.batch_first and self.padded else 1) if self.unbatched else y


def pack(
    x: torch.Tensor | PackedSequence,
    lengths: torch.Tensor | Sequence[int] | None,
    *,
    batch_first: bool,
) -> Rows:
    """Turn what a user passes to a layer into packed rows.

    Args:
        x: [T, B, I], [B, T, I] with ``batch_first``, [T, I] unbatched, or a PackedSequence.
        lengths: [B], valid steps of each row, in any order; 0 is allowed.
        batch_first: layout of a dense ``x``.

    Raises:
        InputError: shapes or lengths do not fit.
    """
    if isinstance(x, PackedSequence):
        if lengths is not None:
            raise InputError("a PackedSequence has its lengths already", given="lengths=", remedy="leave it out")
        sizes = x.batch_sizes.tolist()
        return Rows(x.data, sizes, sizes[0], x.sorted_indices, x.unsorted_indices, packed=x)
    unbatched = x.dim() == 2
    if unbatched:
        x = x.unsqueeze(0 if batch_first else 1)
    batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    if lengths is None:
        time_major = x.transpose(0, 1) if batch_first else x
        data = time_major.reshape(steps * batch, x.shape[2])
        return Rows(data, [batch] * steps, batch, batch_first=batch_first, unbatched=unbatched)

    sizes = _checked_lengths(lengths, batch, steps).to(x.device)
    ordered, order = torch.sort(sizes, descending=True, stable=True)
    active = torch.arange(steps, device=x.device).unsqueeze(1) < ordered.unsqueeze(0)  # [T, B]
    step, row = active.nonzero(as_tuple=True)
    original = order[row]
    index = original * steps + step if batch_first else step * batch + original
    return Rows(
        data=x.reshape(steps * batch, x.shape[2]).index_select(0, index),
        batch_sizes=[size for size in active.sum(1).tolist() if size],
        batch=batch,
        order=order,
        inverse=torch.argsort(order),
        padded=(steps, index),
        batch_first=batch_first,
        unbatched=unbatched,
    )


def _checked_lengths(lengths: torch.Tensor | Sequence[int], batch: int, steps: int) -> torch.Tensor:
    try:
        sizes = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "lengths must be whole numbers", given=repr(lengths), expected="torch.int64, shape [B]"
        ) from error
    if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
        raise InputError("lengths must be whole numbers", given=sizes.dtype, expected="torch.int64, shape [B]")
    if sizes.shape != (batch,):
        raise InputError("lengths must have one number per row", given=tuple(sizes.shape), expected=f"[{batch}]")
    low, high = int(sizes.min()), int(sizes.max())
    if low < 0 or high > steps:
        raise InputError(
            "a length lies outside the sequence",
            given=f"lengths from {low} to {high}",
            expected=f"0 to T = {steps}",
            remedy="lengths count the valid steps of each row of x",
        )
    return sizes.long()
