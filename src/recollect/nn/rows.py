"""The one place where layouts are converted.

Kernels know a single layout: *packed rows*, a matrix [N, features] that holds the rows of step 0, then
those of step 1, and so on, with the longest sequence first, so that ``batch_sizes[t]`` rows are active
at step t. It is `PackedSequence`'s own layout; a dense time-major batch is the case in which all rows are
active at every step: it is taken as it is, [T, B, features].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import PackedSequence

from recollect.errors import InputError


@dataclass(slots=True)
class Rows:
    """How a batch is laid out as packed rows, and the way back.

    Attributes:
        batch_sizes: active rows at each step.
        batch, steps: B and T.
        batch_first: the batch is [B, T, ...] rather than [T, B, ...].
        order: [B] original index of each sorted row, or None where rows are in their original order.
        inverse: [B] sorted position of each original row, or None.
        places: ``(step, row)``, each [N]: where each packed row stands in a batch that has padding; None where
            all rows are active at every step, or where the batch came packed.
        packed: it came as a PackedSequence.
    """

    batch_sizes: Sequence[int]
    batch: int
    steps: int
    batch_first: bool = False
    order: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    places: tuple[torch.Tensor, torch.Tensor] | None = None
    packed: PackedSequence | None = None

    def take(self, batch: torch.Tensor, *, batch_first: bool | None = None) -> torch.Tensor:
        """The rows [N, ...] or [T, B, ...] of a batch in the input's layout, or in the layout that is named."""
        if self.packed is not None:
            return batch
        batch_first = self.batch_first if batch_first is None else batch_first
        if self.places is not None:
            return batch.flatten(0, 1).index_select(0, self._index(batch_first))
        return batch.transpose(0, 1) if batch_first else batch

    def _index(self, batch_first: bool) -> torch.Tensor:
        assert self.places is not None
        step, row = self.places
        return row * self.steps + step if batch_first else step * self.batch + row

    def sort(self, state: torch.Tensor) -> torch.Tensor:
        """Bring [..., B, features] into the order of the rows."""
        return state if self.order is None else state.index_select(-2, self.order)

    def unsort(self, state: torch.Tensor) -> torch.Tensor:
        """Bring [..., B, features] back into the caller's order."""
        return state if self.inverse is None else state.index_select(-2, self.inverse)

    def restore(self, y: torch.Tensor) -> torch.Tensor | PackedSequence:
        """Bring an output, [N, features] or [T, B, features], into the layout in which the input came."""
        if self.packed is not None:
            return PackedSequence(y, self.packed.batch_sizes, self.packed.sorted_indices, self.packed.unsorted_indices)
        if self.places is not None:
            features = y.shape[1]
            leading = (self.batch, self.steps) if self.batch_first else (self.steps, self.batch)
            padded = y.new_zeros(self.steps * self.batch, features)
            return padded.index_copy(0, self._index(self.batch_first), y).view(*leading, features)
        return y.transpose(0, 1) if self.batch_first else y


def lay_out(
    x: torch.Tensor | PackedSequence, lengths: torch.Tensor | Sequence[int] | None, *, batch_first: bool
) -> Rows:
    """Decide how what a user passes to a layer becomes packed rows.

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
        return Rows(sizes, sizes[0], len(sizes), order=x.sorted_indices, inverse=x.unsorted_indices, packed=x)
    batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    if lengths is None and batch:
        return Rows([batch] * steps, batch, steps, batch_first)

    sizes = _checked_lengths([] if lengths is None else lengths, batch, steps).to(x.device)
    ordered, order = torch.sort(sizes, descending=True, stable=True)
    active = torch.arange(steps, device=x.device).unsqueeze(1) < ordered.unsqueeze(0)  # [T, B]
    step, row = active.nonzero(as_tuple=True)
    return Rows(
        # At least one step, of no rows: then final states depend on every parameter, with a gradient of zeros.
        batch_sizes=[size for size in active.sum(1).tolist() if size] or [0],
        batch=batch,
        steps=steps,
        batch_first=batch_first,
        order=order,
        inverse=torch.argsort(order),
        places=(step, order[row]),
    )


def _checked_lengths(lengths: torch.Tensor | Sequence[int], batch: int, steps: int) -> torch.Tensor:
    try:
        sizes = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "lengths must be whole numbers", given=repr(lengths), expected="torch.int64, shape [B]"
        ) from error
    if sizes.shape != (batch,):
        raise InputError("lengths must have one number per row", given=tuple(sizes.shape), expected=f"[{batch}]")
    if not batch:
        return sizes.long()
    if sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool:
        raise InputError("lengths must be whole numbers", given=sizes.dtype, expected="torch.int64, shape [B]")
    low, high = int(sizes.min()), int(sizes.max())
    if low < 0 or high > steps:
        raise InputError(
            "a length lies outside the sequence",
            given=f"lengths from {low} to {high}",
            expected=f"0 to T = {steps}",
            remedy="lengths count the valid steps of each row of x",
        )
    return sizes.long()
