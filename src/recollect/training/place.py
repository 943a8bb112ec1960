"""Where in a tensor the time steps and the rows of a batch are, as far as a module shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Place:
    """A time step and a row of the batch, each counted from 0, or None where it cannot be told."""

    step: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        parts = [f"time step {self.step}"] if self.step is not None else []
        parts += [f"row {self.row}"] if self.row is not None else []
        return f" at {', '.join(parts)} (counted from 0)" if parts else ""


NOWHERE = Place()


def is_sequence_layer(module: nn.Module | None) -> bool:
    """Whether a module says how its sequences lie: ``torch.nn``'s recurrent layers and ours do."""
    return isinstance(getattr(module, "batch_first", None), bool)


def is_bad(tensor: Tensor) -> Tensor:
    """True where a value is inf or NaN."""
    return ~torch.isfinite(tensor.detach())


class Places:
    """Finds places in the tensors of one run of a model.

    A layer with ``batch_first`` tells its own layout, and that of the tensors that others get from it. A
    dimension is taken for time only where it is as long as the sequences. Without such a layer, three
    dimensions are [B, T, features].
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        self._rows = rows
        self._batch_first = next((m.batch_first for m in model.modules() if is_sequence_layer(m)), True)
        self._steps: set[int] = set()
        self._unbatched = False
        self._packed: PackedSequence | None = None

    def saw_sequence(self, x: Any, module: nn.Module | None = None) -> None:
        """Learn from what a sequence layer (or with None, the model) takes."""
        if isinstance(x, PackedSequence):
            self._packed = x
        elif isinstance(x, Tensor) and x.ndim >= 3:
            self._steps.add(x.shape[self._dimensions(module)[0]])
        elif isinstance(x, Tensor) and x.ndim == 2 and module is not None:
            self._unbatched = True
            self._steps.add(x.shape[0])

    def first(self, value: Tensor | PackedSequence, module: nn.Module | None = None) -> Place:
        """The first bad step of a sequence, in the order in which ``module`` goes through it."""
        tensor = value.data if isinstance(value, PackedSequence) else value
        bad = is_bad(tensor)
        if is_sequence_layer(module) and getattr(module, "bidirectional", False) and bad.ndim:
            forward, reverse = bad.tensor_split(2, -1)
            return self._find(value, forward, module) if forward.any() else self._find(value, reverse, module, True)
        return self._find(value, bad, module)

    def last(self, value: Tensor | PackedSequence, module: nn.Module | None = None) -> Place:
        """The first bad step of a gradient on its way back, which is the last in time."""
        bad = is_bad(value.data if isinstance(value, PackedSequence) else value)
        place = self._find(value, bad, module, last=True)
        if is_sequence_layer(module) and getattr(module, "bidirectional", False):
            # The gradient of the reverse direction goes forward in time: bad are the steps from one on.
            earliest = self._find(value, bad, module)
            if earliest.step:
                return earliest
        return place

    def in_state(self, state: Tensor) -> Place:
        """The bad row of a recurrent layer's state [layers * directions, B, H]; it has no time steps."""
        return Place(row=_first(is_bad(state), 1)) if state.ndim == 3 else NOWHERE

    def _dimensions(self, module: nn.Module | None) -> tuple[int, int]:
        """Those of time and of the rows."""
        own = getattr(module, "batch_first", None)
        return (1, 0) if (own if isinstance(own, bool) else self._batch_first) else (0, 1)

    def _find(self, value: Tensor | PackedSequence, bad: Tensor, module: nn.Module | None, last: bool = False) -> Place:
        packed = value if isinstance(value, PackedSequence) else self._packed
        if packed is not None and bad.ndim == 2 and len(bad) == len(packed.data):
            return _in_packed(packed, bad, last)
        if bad.ndim == 2 and (is_sequence_layer(module) or self._unbatched) and len(bad) in self._steps:
            return Place(step=_first(bad, 0, last))
        if bad.ndim >= 3:
            time, row = self._dimensions(module)
            if bad.shape[time] in self._steps:
                step = _first(bad, time, last)
                return Place(step, _first(bad.select(time, step), 0))
            return Place(row=_first(bad, row)) if bad.shape[row] == self._rows else NOWHERE
        return Place(row=_first(bad, 0)) if bad.ndim and len(bad) == self._rows else NOWHERE


def _first(bad: Tensor, dim: int, last: bool = False) -> int:
    """The first (or last) index along ``dim`` at which anything is bad."""
    indices = bad.movedim(dim, 0).flatten(1).any(1).nonzero() if bad.ndim > 1 else bad.nonzero()
    return int(indices[-1 if last else 0])


def _in_packed(packed: PackedSequence, bad: Tensor, last: bool) -> Place:
    """Rows of step 0 come first, then those of step 1, the longest sequence first in each."""
    ends = packed.batch_sizes.cumsum(0)
    flat = bad.any(1).nonzero().flatten().cpu()
    steps = torch.searchsorted(ends, flat, right=True)
    step = int(steps[-1 if last else 0])
    place = int(flat[steps == step][0]) - (int(ends[step - 1]) if step else 0)
    order = packed.sorted_indices
    # Sorted places are not in the order of rows, but one bad row is as good as another.
    return Place(step, place if order is None else int(order[place]))
