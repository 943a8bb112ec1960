"""The one place where it is known how a batch of sequences lies in memory.

Every backend goes through a batch step by step, the longest sequence first, so that at step t the first
``sizes[t]`` sequences are active. In this order its rows are *packed rows*: those of step 0, then those of step 1,
and so on (`PackedSequence`'s own layout). Kernels leave tensors as the caller has them and look up where a packed
row stands (`Layout.places`); loops in PyTorch take the packed rows out (`Layout.take`) and bring results back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np
import torch

from recollect.engine.llvm.rows import Rows


class Layout:
    """How a batch lies in memory.

    Args:
        sizes: active sequences at each step, never growing; at least one step, which may have none.
        batch: B.
        steps: T, as many as ``sizes`` or more; 0 for a batch that is packed.
        batch_first: the batch is [B, T, ...] rather than [T, B, ...].
        order: [B] original index of each sequence, the longest first; None where they are in their original order.

    Attributes:
        sizes, batch, steps, batch_first: as given.
        count: N, the number of packed rows.
        packed: the batch is [N, ...], packed rows already.
        dense: every sequence is active at every step, and in its original order.
        kept: it is the same object for the same sizes, so that much can be kept by it.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch: int,
        steps: int = 0,
        *,
        batch_first: bool = False,
        order: np.ndarray | None = None,
    ) -> None:
        self.sizes, self.batch, self.steps, self.batch_first, self._order = sizes, batch, steps, batch_first, order
        self.count, self.packed = sum(sizes), not steps
        self.dense = not self.packed and order is None and self.count == steps * batch
        self.kept = False

    @cached_property
    def places(self) -> np.ndarray:
        """Row numbers of a batch flattened to [rows, features]: of each packed row [N], then of all padding."""
        if self.packed:
            return np.arange(self.count)
        step = np.arange(self.steps)[:, None]
        sequence = np.arange(self.batch) if self._order is None else self._order
        grid = sequence * self.steps + step if self.batch_first else step * self.batch + sequence
        if self.dense:
            return grid.ravel()
        active = np.zeros((self.steps, self.batch), bool)
        np.less(np.arange(self.batch), np.array(self.sizes)[:, None], out=active[: len(self.sizes)])
        return np.concatenate([grid[active], grid[~active]])

    @cached_property
    def rows(self) -> Rows:
        """What kernels are told of it."""
        return Rows(self.sizes, self.places)

    def part(self, first: int, last: int) -> Layout:
        """Some neighbouring steps, whose rows stay where they are in this batch; there is no padding among them."""
        sizes, begin = self.sizes[first:last], self._offsets[first]
        made = Layout(sizes, sizes[0])
        made.places = self.places[begin : begin + made.count]
        return made

    @cached_property
    def _offsets(self) -> list[int]:
        """Where the packed rows of each step begin, and where the last one's end."""
        return [0, *accumulate(self.sizes)]

    @property
    def unequal(self) -> bool:
        """Whether rows end at different steps."""
        return self.count < len(self.sizes) * self.batch

    def take(self, batch: torch.Tensor) -> torch.Tensor:
        """The packed rows [N, ...] of a batch."""
        if self.packed:
            return batch
        if self.dense:
            return (batch.transpose(0, 1) if self.batch_first else batch).flatten(0, 1)
        return batch.flatten(0, 1).index_select(0, self._index(batch.device))

    def restore(self, rows: torch.Tensor) -> torch.Tensor:
        """Packed rows as a batch; zeros where there is padding."""
        if self.packed:
            return rows
        if self.dense:
            batch = rows.unflatten(0, (self.steps, self.batch))
            return batch.transpose(0, 1) if self.batch_first else batch
        batch = rows.new_zeros(self.steps * self.batch, *rows.shape[1:]).index_copy(0, self._index(rows.device), rows)
        return batch.unflatten(0, (self.batch, self.steps) if self.batch_first else (self.steps, self.batch))

    def _index(self, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(self.places[: self.count]).to(device)

    def sort(self, state: torch.Tensor) -> torch.Tensor:
        """Bring [..., B, features] into the order of the packed rows."""
        return state if self._order is None else state.index_select(-2, torch.from_numpy(self._order).to(state.device))

    def unsort(self, state: torch.Tensor) -> torch.Tensor:
        """Bring [..., B, features] back into the caller's order."""
        return state if self._order is None else state.index_select(-2, self._inverse.to(state.device))

    @cached_property
    def _inverse(self) -> torch.Tensor:
        inverse = np.empty_like(self._order)
        inverse[self._order] = np.arange(self.batch)
        return torch.from_numpy(inverse)


_MOST_KEPT = 1 << 15  # rows; beyond, a table of places is large, and quickly made beside what is done with them


def dense(batch: int, steps: int, *, batch_first: bool = False) -> Layout:
    """The layout of a batch without padding."""
    return (_kept if batch * steps <= _MOST_KEPT else _dense)(batch, steps, batch_first)


def _dense(batch: int, steps: int, batch_first: bool) -> Layout:
    return Layout([batch] * steps, batch, steps, batch_first=batch_first)


@lru_cache(maxsize=128)
def _kept(batch: int, steps: int, batch_first: bool) -> Layout:
    layout = _dense(batch, steps, batch_first)
    layout.kept = True
    return layout
