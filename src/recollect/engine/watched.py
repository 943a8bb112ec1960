"""What a layer leaves for whoever watches it: its states and gates at every step, and what comes back to these.

Kernels keep what their backward pass reads of the forward pass anyway, so a forward pass that is watched is none but
the usual one; the backward pass is a kernel of its own (`llvm.backward`), which also writes down the dL/ds that it
computes. The reference has hooks on its states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch

from recollect.cells.cell import Cell
from recollect.engine.layout import Layout
from recollect.engine.reference import Step
from recollect.graph.gates import activations
from recollect.graph.graph import Graph
from recollect.graph.trace import TorchTarget


class Watched:
    """One layer in one direction, in a call that is watched.

    Tensors have no derivatives, and hold packed rows (see `Layout`): N of them, those of step 0 first.

    Attributes:
        cell, layout: of the call.
        label: of the layer and direction, such as ``"l1_reverse"``.
        reverse: it goes through each row from its last step to its first.
        before: each state as the steps found it, [N, its size]: after a reset the initial one. Empty where nothing
            is kept for a backward pass.
        final: each state after each row's last step, [B, its size].
        gradients: dL/ds of each state as it leaves the steps, [N, its size]; None until a backward pass has run. Those
            of several backward passes add up, as those of parameters do.
    """

    def __init__(self, cell: Cell, layout: Layout, label: str, *, reverse: bool) -> None:
        self.cell, self.layout, self.label, self.reverse = cell, layout, label, reverse
        self.before: tuple[torch.Tensor, ...] = ()
        self.final: tuple[torch.Tensor, ...] = ()
        self.gradients: tuple[torch.Tensor, ...] | None = None
        self._steps: list[Step] = []
        self._gates: Graph
        self._leaves: dict[str, torch.Tensor] = {}

    def gates(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The activation of each gate that has one, [n, H], in the rows with these numbers [n]."""
        leaves = {name: self._leaves[name] for name in self._gates.leaves}
        chosen = {name: leaf if leaf.dim() == 1 else leaf.index_select(0, rows) for name, leaf in leaves.items()}
        found = self._gates.evaluate(chosen, TorchTarget(self.before[0].dtype))
        return {name.partition(".")[2]: values for name, values in found.items()}

    def saw_forward(
        self,
        gates: Graph,
        before: Sequence[torch.Tensor],
        final: Sequence[torch.Tensor],
        leaves: dict[str, torch.Tensor],
    ) -> None:
        """Take what a forward pass kept.

        Args:
            gates: outputs ``gate.k``.
            before: see `Watched`.
            final: [1, B, its size] each.
            leaves: of ``gates``, [N, H] or [H] each.
        """
        self._gates = gates
        self.before = tuple(each.detach() for each in before)
        self.final = tuple(each.detach().squeeze(0) for each in final)
        self._leaves = {name: leaf.detach() for name, leaf in leaves.items()}

    def saw_backward(self, gradients: Sequence[torch.Tensor]) -> None:
        """Take what a backward pass left, [N, its size] each."""
        if self.gradients is None:
            self.gradients = tuple(gradients)
        else:
            self.gradients = tuple(old + new for old, new in zip(self.gradients, gradients, strict=True))

    def tap(self, step: Step) -> tuple[torch.Tensor, ...]:
        """The tap of a run of the reference that is watched; `ended` when it is over."""
        self._steps.append(step)
        return self.hook(step)

    def ended(self, final: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor]) -> None:
        """Take the results of such a run, which used these per-unit parameters."""
        cell, steps = self.cell, sorted(self._steps, key=lambda step: step.t)
        self._steps = []
        if not steps:
            return
        before = _joined([step.prev for step in steps])
        leaves = {f"prev.{name}": state for name, state in zip(cell.states, before, strict=True)}
        for kind, shares in (("inp", [step.inp for step in steps]), ("rec", [step.rec for step in steps])):
            leaves |= {f"{kind}.{gate}": share for gate, share in zip(cell.gates, _joined(shares), strict=True)}
        leaves |= {f"vec.{name}": vector for name, vector in zip(cell.vectors, vectors, strict=True)}
        outputs = tuple((f"gate.{gate}", found.node) for gate, found in activations(cell.graph, cell.gates).items())
        self.saw_forward(dataclasses.replace(cell.graph, outputs=outputs), before, final, leaves)

    def hook(self, step: Step) -> tuple[torch.Tensor, ...]:
        """The states of a step, so that what comes back to them is noted, and not what they do inside the step."""
        new = tuple(each.view_as(each) for each in step.new)
        for place, each in enumerate(new):
            if each.requires_grad:
                each.register_hook(partial(self._note, place, sum(self.layout.sizes[: step.t])))
        return new

    def _note(self, place: int, first: int, gradient: torch.Tensor) -> None:
        if self.gradients is None:
            self.gradients = tuple(torch.zeros_like(each) for each in self.before)
        self.gradients[place][first : first + len(gradient)] += gradient.detach()


def _joined(parts: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.cat(each) for each in zip(*parts, strict=True)]
