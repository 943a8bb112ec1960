"""One layer in one direction, laid out over time: what each step began with, what it made, what came back to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recollect.engine.reference import Step
from recollect.graph.derivatives import node_gradients, partials
from recollect.graph.gates import activations
from recollect.graph.trace import TorchTarget
from recollect.nn import Recurrent


@dataclass(eq=False)
class Unrolled:
    """A layer's run in one direction.

    Tensors of all steps are stacked: N rows, those of the step processed first, then those of the next. In a step
    rows stand as the layer has them; where it was told the lengths, the longest sequence first.

    Attributes:
        name: of module, level and direction, such as ``"rnn.l1_reverse"``.
        label: of level and direction alone.
        layer: the module, in the copy.
        steps: in the order of processing.
        lengths: [B] valid steps of each row.
        gradients: dL/ds of each state leaving each of ``steps``.
    """

    name: str
    label: str
    layer: Recurrent
    steps: list[Step] = field(default_factory=list)
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    gradients: list[tuple[Tensor, ...]] = field(default_factory=list)

    @property
    def reverse(self) -> bool:
        """Whether the steps went from each row's last to its first."""
        return self.label.endswith("_reverse")

    @property
    def lags(self) -> int:
        """T_max, the valid steps of the longest row."""
        return int(self.lengths.max(initial=0))

    def rows_at(self, lag: int) -> NDArray[np.int64]:
        """Where among the N stacked rows those steps are that lie ``lag`` steps before their row's last one.

        Lag counts in the order of processing; rows that are no longer than ``lag`` are left out.
        """
        return self.places(np.flatnonzero(self.lengths > lag), lag)

    def places(self, rows: NDArray[np.int64], lag: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """The same for ``rows`` that are all longer than ``lag``; each row may have a lag of its own."""
        times = lag + 0 * rows if self.reverse else self.lengths[rows] - 1 - lag
        return self._first_of[times] + rows

    def by_lag(self) -> Iterator[NDArray[np.int64]]:
        """`rows_at` of each lag."""
        return map(self.rows_at, range(self.lags))

    @cached_property
    def times(self) -> NDArray[np.int64]:
        """[N] the step in time of each stacked row."""
        return np.repeat([step.t for step in self.steps], [len(step.new[0]) for step in self.steps])

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """[N] the row of the batch that each stacked row belongs to."""
        return np.concatenate([np.arange(len(step.new[0])) for step in self.steps])

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """[N] False for padding that the layer ran over, since nobody told it the lengths."""
        return self.times < self.lengths[self.rows]

    def only_valid(self, values: Tensor) -> Tensor:
        """Without padding: those of N stacked rows for which ``valid`` holds."""
        return values if self.valid.all() else values[torch.from_numpy(self.valid).to(values.device)]

    @property
    def longest_row(self) -> NDArray[np.int64]:
        """Where the steps of the longest row (the first of them) stand, in the order of time."""
        of_row = self.valid & (self.rows == np.argmax(self.lengths))
        return np.flatnonzero(of_row)[np.argsort(self.times[of_row])]

    @cached_property
    def _first_of(self) -> NDArray[np.int64]:
        """By time, where the stacked rows of a step begin."""
        counts = [len(step.new[0]) for step in self.steps]
        first = np.zeros(max((step.t for step in self.steps), default=-1) + 1, np.int64)
        first[[step.t for step in self.steps]] = np.cumsum([0, *counts[:-1]])
        return first

    @cached_property
    def follows(self) -> NDArray[np.bool_]:
        """[N] False where a row was reset before the step, so that it did not begin with what the step before left."""
        counts = np.zeros(len(self._first_of) + 1, np.int64)  # one more, for the neighbours of the first and last step
        for step in self.steps:
            counts[step.t] = len(step.new[0])
        earlier = self.times + (1 if self.reverse else -1)
        has = np.flatnonzero(self.rows < counts[earlier])  # a row's first step begins with the initial states
        found, left = torch.from_numpy(has), torch.from_numpy(self._first_of[earlier[has]] + self.rows[has])
        same = np.ones(len(earlier), bool)
        for before, after in zip(self.before, self.states, strict=True):
            same[has] &= (before.cpu()[found] == after.cpu()[left]).all(1).numpy()
        return same

    def stacked(self, part: Callable[[Step], Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """One part of every step, as tensors of N rows."""
        return tuple(torch.cat(each).detach() for each in zip(*map(part, self.steps), strict=True))

    @cached_property
    def states(self) -> tuple[Tensor, ...]:
        """Each state as it leaves the steps, [N, H]."""
        return self.stacked(lambda step: step.new)

    @cached_property
    def before(self) -> tuple[Tensor, ...]:
        """Each state as the steps found it, [N, H]."""
        return self.stacked(lambda step: step.prev)

    @cached_property
    def state_gradients(self) -> tuple[Tensor, ...]:
        """dL/ds of each state, [N, H]."""
        return tuple(torch.cat(each) for each in zip(*self.gradients, strict=True))

    @cached_property
    def leaves(self) -> dict[str, Tensor]:
        """The leaves of the cell's graph, [N, H] each ([H] for vectors)."""
        cell = self.layer.cell
        found = {f"prev.{name}": state for name, state in zip(cell.states, self.before, strict=True)}
        for kind, shares in (
            ("inp", self.stacked(lambda step: step.inp)),
            ("rec", self.stacked(lambda step: step.rec)),
        ):
            found |= {f"{kind}.{gate}": share for gate, share in zip(cell.gates, shares, strict=True)}
        return found | {f"vec.{name}": getattr(self.layer, f"vector_{name}_{self.label}") for name in cell.vectors}

    def nodes(self) -> list[Tensor]:
        """Compute the value of every node of the cell's graph at every step; a constant is a number.

        They are not kept: there may be dozens, each as large as a state.
        """
        target = TorchTarget(self.leaves[f"inp.{self.layer.cell.gates[0]}"].dtype)
        return self.layer.cell.graph.values(self.leaves, target)

    @cached_property
    def gates(self) -> dict[str, Tensor]:
        """The activation of each gate that has one, [N, H]."""
        cell, nodes = self.layer.cell, self.nodes()
        return {gate: nodes[found.node] for gate, found in activations(cell.graph, cell.gates).items()}

    @cached_property
    def gate_gradients(self) -> dict[str, Tensor | float]:
        """dL/d of the activation of each gate that has one, [N, H] or a number."""
        cell = self.layer.cell
        found = activations(cell.graph, cell.gates)
        graph = node_gradients(cell.graph, tuple(each.node for each in found.values()))
        seeds = {f"grad.{state}": seed for state, seed in zip(cell.states, self._seeds(), strict=True)}
        target = TorchTarget(self.leaves[f"inp.{cell.gates[0]}"].dtype)
        values = graph.evaluate(self.leaves | seeds, target)
        return {gate: values[str(each.node)] for gate, each in found.items()}

    @cached_property
    def partials(self) -> dict[str, Tensor | float]:
        """The derivatives within each step, ``"c/rec.f"`` for dc/d(rec.f), [N, H] or a number; see `partials`.

        Those of the cell itself: before zoneout and a projection.
        """
        target = TorchTarget(self.leaves[f"inp.{self.layer.cell.gates[0]}"].dtype)
        return partials(self.layer.cell.graph).evaluate(self.leaves, target)

    @cached_property
    def recurrent_gradients(self) -> Tensor:
        """dL/d(rec.k) of all gates, [N, G * H]: how L depends on h W_hh + b_hh at each step."""
        cell, seeds = self.layer.cell, self._seeds()
        zero = torch.zeros_like(self.leaves[f"rec.{cell.gates[0]}"])
        return torch.cat(
            [
                zero
                + sum(
                    seed * self.partials[key]
                    for state, seed in zip(cell.states, seeds, strict=True)
                    if (key := f"{state}/rec.{gate}") in self.partials
                )
                for gate in cell.gates
            ],
            dim=1,
        )

    def _seeds(self) -> list[Tensor]:
        """dL/ds of what the cell itself returns: before zoneout, which keeps its mean in eval mode, and projection."""
        seeds = [
            (1.0 - keep) * gradient for keep, gradient in zip(self.layer.zoneout, self.state_gradients, strict=True)
        ]
        if self.layer.proj_size:
            seeds[0] = seeds[0] @ getattr(self.layer, f"weight_hr_{self.label}")
        return seeds
