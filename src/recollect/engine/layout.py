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

from recollect.engine.llvm import lengths
from recollect.engine.llvm.fixed import fixed_code
from recollect.engine.llvm.kernels import Function
from recollect.engine.llvm.lengths import Table
from recollect.engine.llvm.problem import Parts, Pass
from recollect.engine.llvm.rows import Rows
from recollect.engine.memory import check_memory


class Layout:
    """How a batch lies in memory.

    Args:
        sizes: active sequences at each step, never growing; at least one step, which may have none.
        batch: B.
        steps: T, as many as ``sizes`` or more; 0 for a batch that is packed.
        batch_first: the batch is [B, T, ...] rather than [T, B, ...].
        order: [B] original index of each sequence, the longest first; None where they are in their original order.
        inverse: [B] where in that order each sequence is; as ``order``.

    Attributes:
        sizes, batch, steps, batch_first: as given.
        count: N, the number of packed rows.
        packed: the batch is [N, ...], packed rows already.
        dense: every sequence is active at every step, and in its original order.
        kept: it is the same object for the same sizes, so that much can be kept by it.
        shape: of the batch without features.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch: int,
        steps: int = 0,
        *,
        batch_first: bool = False,
        order: torch.Tensor | None = None,
        inverse: torch.Tensor | None = None,
    ) -> None:
        self.sizes, self.batch, self.steps, self.batch_first = sizes, batch, steps, batch_first
        self._order, self._inverse = order, inverse
        self.count, self.packed = sum(sizes), not steps
        self.shape = (self.count,) if self.packed else _shape(batch, steps, batch_first)
        self.dense = not self.packed and order is None and self.count == steps * batch
        self.kept = False

    @cached_property
    def places(self) -> np.ndarray:
        """Row numbers of a batch flattened to [rows, features]: of each packed row [N], then of all padding."""
        if self.packed:
            return np.arange(self.count)
        step, sequence = np.arange(self.steps)[:, None], np.arange(self.batch)
        return (sequence * self.steps + step if self.batch_first else step * self.batch + sequence).ravel()

    @cached_property
    def rows(self) -> Rows:
        """What kernels are told of it."""
        return Rows.of(self.sizes, self.places, self.shape)

    def part(self, first: int, last: int) -> Layout:
        """Some neighbouring steps, whose rows stay where they are in this batch; there is no padding among them."""
        sizes, begin = self.sizes[first:last], self._offsets[first]
        made = Layout(sizes, sizes[0])
        made.shape = self.shape
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
        return state if self._order is None else _select(state, self._order)

    def unsort(self, state: torch.Tensor) -> torch.Tensor:
        """Bring [..., B, features] back into the caller's order."""
        return state if self._inverse is None else _select(state, self._inverse)


class Padded(Layout):
    """The layout of a batch of sequences with padding after them.

    Args:
        lengths: [B] of int64, contiguous and on the CPU; B is at least 1.
        steps: T.
        batch_first: the batch is [B, T, ...] rather than [T, B, ...].

    Attributes:
        shortest, longest: of the lengths. Where these are below 0 or above T, nothing else is known of the layout.
    """

    def __init__(self, lengths: torch.Tensor, steps: int, *, batch_first: bool) -> None:
        self.batch, self.steps, self.batch_first = len(lengths), steps, batch_first
        self.packed = self.kept = self.dense = False
        self.shape = _shape(self.batch, steps, batch_first)
        self._parts = parts = Table(self.batch, steps)
        self._table = table = torch.empty(parts.total, dtype=torch.int64, device="cpu")
        kernel, self._at = _kernel(), table.data_ptr()
        arguments = kernel.arguments((lengths.data_ptr(), self.batch, steps, batch_first, self._at, 0, 0, 0, 0, 0))
        kernel.run(arguments)
        self.shortest, self.longest, self._begun, self.count, in_order = arguments[-5:]
        self._order = self._inverse = None
        if not in_order:
            self._order, self._inverse = table[: self.batch], table[parts.inverse : parts.offsets]

    @cached_property
    def sizes(self) -> list[int]:
        # At least one step, of no rows: then final states depend on every parameter, with a gradient of zeros.
        begin = self._parts.offsets
        return self._table[begin : begin + max(1, self.longest) + 1].diff().tolist()

    @cached_property
    def places(self) -> np.ndarray:
        return self._table[self._parts.places :].numpy()

    @cached_property
    def rows(self) -> Rows:
        """What kernels are told of it."""
        offsets, places = (self._at + 8 * part for part in (self._parts.offsets, self._parts.places))
        steps, every = max(1, self.longest), self.steps * self.batch
        return Rows(steps, self._begun, self.count, offsets, places, every, self._table, self.shape)

    @property
    def unequal(self) -> bool:
        return self.shortest < self.longest


def _select(state: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    check_memory("a state, or its gradient,", state)  # torch would read without
    return state.index_select(-2, order.to(state.device))


def _shape(batch: int, steps: int, batch_first: bool) -> tuple[int, int]:
    return (batch, steps) if batch_first else (steps, batch)


@lru_cache(maxsize=1)
def _kernel() -> Pass:
    function = Function("lengths", lengths.SLOTS, fixed_code("lengths", lambda: lengths.write().module))
    return Pass(function, {}, lengths.ARGUMENTS, Parts())


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
