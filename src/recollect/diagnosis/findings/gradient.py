"""The gradient on its way back: exploding, vanishing, or healthy."""

from __future__ import annotations

import math

import numpy as np

from recollect.diagnosis.findings.case import Case, Place
from recollect.diagnosis.findings.finding import Finding
from recollect.diagnosis.flow import GONE, first_lag

# An exploding gradient: how often its first value it may become, or by what it may grow in each step of
# a sequence that is long enough to tell.
_LARGEST_RATIO = 100.0
_LARGEST_GROWTH, _LONG_ENOUGH = 1.05, 20
# A vanishing one: the share of the sequence that it does not reach.
_LEAST_REACH = 1 / 4

_CLIP = "loss.backward()\nrecollect.clip_by_global_norm(model.parameters(), max_norm=1.0)\noptimizer.step()"


def exploding(case: Case) -> list[Finding]:
    """``"exploding"``: at some lag the gradient is more than 100 times its value at lag 0, or it grows by more than
    5 % per step over at least 20 steps.
    """
    curve, growth, steps = case.curve, case.growth, len(case.curve)
    overflow = np.flatnonzero(~np.isfinite(curve))
    if len(overflow):
        evidence = f"the gradient leaves float64 at lag {overflow[0]} of {steps} steps"
        return [Finding("exploding", "error", evidence, _CLIP, "step")]
    first = first_lag(curve)
    if first is None:
        return []
    peak = int(np.argmax(curve))
    with np.errstate(over="ignore"):
        ratio = float(curve[peak] / curve[first])
    if ratio <= _LARGEST_RATIO and not (growth > _LARGEST_GROWTH and steps >= _LONG_ENOUGH):
        return []
    evidence = f"the gradient grows to {ratio:.3g} times its value at lag {first} by lag {peak}, {_each(growth)}"
    return [Finding("exploding", "error", evidence, _CLIP, "step")]


def vanishing(case: Case) -> list[Finding]:
    """``"vanishing"``: no state of the layer and direction has a gradient horizon of a quarter of the sequence."""
    growth, horizons, steps = case.growth, case.horizons, len(case.curve)
    if any(horizon >= _LEAST_REACH * steps for horizon in horizons.values()):
        return []
    if not any(horizons.values()):
        evidence = f"the gradient is 0 at every one of {steps} steps"
    else:
        name, longest = max(horizons.items(), key=lambda item: item[1])
        evidence = (
            f"no state's gradient stays above {GONE:.0%} of its start for a quarter of {steps} steps; "
            f"the furthest is {name} with {longest} step{'' if longest == 1 else 's'}, {_each(growth)}"
        )
    return [Finding("vanishing", "warning", evidence, _longer_memory(case.place, steps), "model")]


def healthy(case: Case) -> Finding:
    """``"healthy"``: neither of the two."""
    curve, growth, horizons = case.curve, case.growth, case.horizons
    name, longest = max(horizons.items(), key=lambda item: item[1])
    evidence = (
        f"the gradient of {name} stays above {GONE:.0%} of its start for {longest} of {len(curve)} steps, "
        f"{_each(growth)}"
    )
    return Finding("healthy", "info", evidence, "")


def _each(growth: float) -> str:
    return f"times {growth:.3g} per step"


def _longer_memory(place: Place, steps: int) -> str:
    """Code that gives the cell a longer memory to start from; training then begins again."""
    layer = place.unrolled.layer
    if "f" in layer.cell.gates and "c" in layer.cell.states and layer.bias:
        call = f"forget_bias_({{}}, {_forget_bias(place, steps)})"
    else:
        call = "orthogonal_({})"
    return "\n".join(["# start the weights so that the gradient lasts, then train again", *place.initialise(call)])


def _forget_bias(place: Place, steps: int) -> float:
    """1, or where the gate is already that far open, what keeps c for the whole sequence.

    sigmoid(log T) = 1 - 1/(T + 1), so the memory is of the order of T (after Tallec & Ollivier 2018).
    """
    now = place.bias("f").mean().item()
    return 1.0 if now < 0.5 else round(max(math.log(steps), now + 1), 1)
