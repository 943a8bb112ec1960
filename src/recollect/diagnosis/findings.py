"""What is wrong with a gradient, said with numbers and with one remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recollect.diagnosis.flow import GONE, Curve, first_lag
from recollect.nn import Recurrent

Severity = Literal["info", "warning", "error"]

# An exploding gradient: how often its first value it may become, or by what it may grow in each step of
# a sequence that is long enough to tell.
_LARGEST_RATIO = 100.0
_LARGEST_GROWTH, _LONG_ENOUGH = 1.05, 20
# A vanishing one: the share of the sequence that it does not reach.
_LEAST_REACH = 1 / 4


@dataclass(frozen=True)
class Finding:
    """One thing that a diagnosis found.

    Attributes:
        kind: ``"exploding"``: at some lag the gradient is more than 100 times its value at lag 0, or it
            grows by more than 5 % per step over at least 20 steps. ``"vanishing"``: the gradient horizon
            of no state of the layer and direction reaches a quarter of the sequence. Else ``"healthy"``.
        severity: ``"error"`` stops or spoils training, ``"warning"`` limits what can be learned, ``"info"``.
        evidence: the numbers that say so, in a sentence.
        remedy: Python code to paste, or "" where nothing is to be done. It speaks of ``model``, ``loss``
            and ``optimizer``.
    """

    kind: str
    severity: Severity
    evidence: str
    remedy: str

    def __str__(self) -> str:
        remedy = "".join(f"\n    {line}" for line in self.remedy.splitlines())
        return f"{self.kind} ({self.severity}): {self.evidence}{remedy}"


def judge(curve: Curve, growth: float, horizons: Mapping[str, int], place: Place) -> list[Finding]:
    """Name what is wrong.

    Args:
        curve: the gradient by lag that is judged, [T].
        growth: its growth per step.
        horizons: the gradient horizon of every state of the same layer and direction, each from its own
            start. The gradient has vanished only if none of them carries it: in an LSTM, c may where h does
            not.
        place: where the curve comes from; remedies differ by cell.

    Returns:
        Findings, the worst first; a healthy one if there is no other.
    """
    found = [_exploding(curve, growth), _vanishing(curve, growth, horizons, place)]
    worst = [each for each in found if each is not None]
    return worst or [_healthy(curve, growth, horizons)]


def _exploding(curve: Curve, growth: float) -> Finding | None:
    steps = len(curve)
    remedy = "loss.backward()\nrecollect.clip_by_global_norm(model.parameters(), max_norm=1.0)\noptimizer.step()"
    overflow = np.flatnonzero(~np.isfinite(curve))
    if len(overflow):
        evidence = f"the gradient leaves float64 at lag {overflow[0]} of {steps} steps"
        return Finding("exploding", "error", evidence, remedy)
    first = first_lag(curve)
    if first is None:
        return None
    peak = int(np.argmax(curve))
    with np.errstate(over="ignore"):
        ratio = float(curve[peak] / curve[first])
    if ratio <= _LARGEST_RATIO and not (growth > _LARGEST_GROWTH and steps >= _LONG_ENOUGH):
        return None
    evidence = f"the gradient grows to {ratio:.3g} times its value at lag {first} by lag {peak}, {_each(growth)}"
    return Finding("exploding", "error", evidence, remedy)


def _vanishing(curve: Curve, growth: float, horizons: Mapping[str, int], place: Place) -> Finding | None:
    steps = len(curve)
    if any(horizon >= _LEAST_REACH * steps for horizon in horizons.values()):
        return None
    if not any(horizons.values()):
        evidence = f"the gradient is 0 at every one of {steps} steps"
    else:
        name, longest = max(horizons.items(), key=lambda item: item[1])
        evidence = (
            f"no state's gradient stays above {GONE:.0%} of its start for a quarter of {steps} steps; "
            f"the furthest is {name} with {longest} step{'' if longest == 1 else 's'}, {_each(growth)}"
        )
    return Finding("vanishing", "warning", evidence, place.remedy_for_vanishing(steps))


def _healthy(curve: Curve, growth: float, horizons: Mapping[str, int]) -> Finding:
    name, longest = max(horizons.items(), key=lambda item: item[1])
    evidence = (
        f"the gradient of {name} stays above {GONE:.0%} of its start for {longest} of {len(curve)} steps, "
        f"{_each(growth)}"
    )
    return Finding("healthy", "info", evidence, "")


def _each(growth: float) -> str:
    return f"times {growth:.3g} per step"


@dataclass(frozen=True)
class Place:
    """Where in a model a curve was taken.

    Attributes:
        path: of the recurrent layer in the model, "" for a bare layer.
        label: of its level and direction, such as "l1_reverse".
        layer: the module, as it was copied.
        ours: it was one of our layers before it was copied, so that `recollect.nn.init` takes it.
    """

    path: str
    label: str
    layer: Recurrent
    ours: bool

    def remedy_for_vanishing(self, steps: int) -> str:
        """Code that gives the cell a longer memory to start from; training then begins again."""
        lines = ["# start the weights so that the gradient lasts, then train again"]
        if not self.ours:
            lines.append("model = recollect.convert(model)")
        cell = self.layer.cell
        if "f" in cell.gates and "c" in cell.states and self.layer.bias:
            lines.append(f"recollect.nn.init.forget_bias_({self._expression}, {self._forget_bias(steps)})")
        else:
            lines.append(f"recollect.nn.init.orthogonal_({self._expression})")
        return "\n".join(lines)

    def _forget_bias(self, steps: int) -> float:
        """1, or where the gate is already that far open, what keeps c for the whole sequence.

        sigmoid(log T) = 1 - 1/(T + 1), so the memory is of the order of T (after Tallec & Ollivier 2018).
        """
        place, gates = self.layer.cell.gates.index("f"), len(self.layer.cell.gates)
        biases = (getattr(self.layer, f"{kind}_{self.label}") for kind in ("bias_ih", "bias_hh"))
        now = sum(bias.chunk(gates)[place].mean().item() for bias in biases)
        return 1.0 if now < 0.5 else round(max(math.log(steps), now + 1), 1)

    @property
    def _expression(self) -> str:
        if all(part.isidentifier() for part in self.path.split(".")):
            return f"model.{self.path}"
        return f'model.get_submodule("{self.path}")' if self.path else "model"
