"""Everything that a rule may look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recollect.diagnosis.activity import GateActivity
from recollect.diagnosis.flow import Curve
from recollect.diagnosis.runs.call import Call
from recollect.diagnosis.runs.unrolled import Unrolled
from recollect.graph.gates import activations

if TYPE_CHECKING:
    from recollect.diagnosis.probe.observer import Probe


@dataclass(frozen=True)
class Case:
    """A diagnosed run.

    Attributes:
        calls: of all recurrent layers.
        judged: the layer and direction whose gradient is judged.
        curve: the norm of its gradient by lag, [T].
        growth: its growth per step.
        horizons: the gradient horizon of every state of ``judged``, each from its own start. The gradient has
            vanished only if none of them carries it: in an LSTM, c may where h does not.
        gates: what each gate did, by name (``"rnn.l0.f"``).
        ours: the paths of the layers that were ours before the model was copied, so that `recollect.nn.init` takes
            them.
        x: what the model was called with.
        memory: over how many steps back an input changes the output: the longest that was measured.
        window: the steps that truncated backpropagation goes back in training, or None.
        training: what watched the training, or None.
    """

    calls: Sequence[Call]
    judged: Unrolled
    curve: Curve
    growth: float
    horizons: Mapping[str, int]
    gates: Mapping[str, GateActivity]
    ours: frozenset[str]
    x: Any
    memory: int
    window: int | None
    training: Probe | None

    @cached_property
    def every(self) -> list[tuple[Unrolled, Place]]:
        """All layers and directions, in the order in which they ran."""
        return [
            (each, Place(call.path, each, call.path in self.ours))
            for call in self.calls
            for each in call.unrolled.values()
        ]

    @property
    def place(self) -> Place:
        """Where ``judged`` is."""
        return next(place for each, place in self.every if each is self.judged)


@dataclass(frozen=True)
class Place:
    """Where in a model a layer and direction is, for remedies to speak of it.

    Attributes:
        path: of the recurrent layer in the model, "" for a bare layer.
        unrolled: its run.
        ours: it was one of our layers before it was copied.
    """

    path: str
    unrolled: Unrolled
    ours: bool

    @property
    def expression(self) -> str:
        """The layer, as code that begins with ``model``."""
        if not self.path:
            return "model"
        if all(part.isidentifier() for part in self.path.split(".")):
            return f"model.{self.path}"
        return f'model.get_submodule("{self.path}")'

    def parameter(self, kind: str) -> str:
        """One of its parameters as code: ``model.rnn.bias_ih_l0``."""
        return f"{self.expression}.{kind}_{self.unrolled.label}"

    def initialise(self, call: str) -> list[str]:
        """Lines that call one of `recollect.nn.init` on the layer; ``{}`` in ``call`` stands for it."""
        convert = [] if self.ours else ["model = recollect.convert(model)"]
        return [*convert, "recollect.nn.init." + call.format(self.expression)]

    def bias(self, gate: str) -> Tensor:
        """[H] what both biases of a gate add up to; zeros where there are none."""
        layer, label = self.unrolled.layer, self.unrolled.label
        if not layer.bias:
            return torch.zeros(layer.hidden_size)
        rows = self.rows(gate)
        return getattr(layer, f"bias_ih_{label}")[rows] + getattr(layer, f"bias_hh_{label}")[rows]

    def rows(self, gate: str) -> slice:
        """The rows of the packed parameters that belong to a gate."""
        hidden, place = self.unrolled.layer.hidden_size, self.unrolled.layer.cell.gates.index(gate)
        return slice(place * hidden, (place + 1) * hidden)


@dataclass(frozen=True)
class Carry:
    """How much of a state a step hands on unchanged: dc'/dc within the step, which is f in an LSTM, z in a GRU.

    Attributes:
        state: its name.
        values: [N, H] at each step.
        gate: the gate that decides it, if one does.
        opens: True where the carry is the gate's activation, False where it is 1 - that.
    """

    state: str
    values: Tensor
    gate: str | None
    opens: bool


def carry_of(unrolled: Unrolled) -> Carry | None:
    """The carry of the first state that has one between 0 and 1; None for cells without, such as the simple RNN."""
    for state in unrolled.layer.cell.states:
        found = unrolled.partials.get(f"{state}/prev.{state}")
        if not isinstance(found, Tensor) or found.dim() != 2 or found.min() < 0 or found.max() > 1:
            continue
        for gate, opens, values in _candidates(unrolled):
            if torch.allclose(values, found, rtol=1e-9, atol=1e-12):
                return Carry(state, found, gate, opens)
        return Carry(state, found, None, True)
    return None


def _candidates(unrolled: Unrolled) -> Iterator[tuple[str, bool, Tensor]]:
    cell = unrolled.layer.cell
    for gate, activation in activations(cell.graph, cell.gates).items():
        if activation.kind == "sigmoid":
            value = unrolled.gates[gate]
            yield gate, True, value
            yield gate, False, 1.0 - value
