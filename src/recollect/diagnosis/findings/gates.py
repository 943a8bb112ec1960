"""Gates that answer no more: saturated, dead, shut for good or open for good."""

from __future__ import annotations

import numpy as np
import torch

from recollect.diagnosis.findings.case import Carry, Case, Place, carry_of
from recollect.diagnosis.findings.finding import Finding
from recollect.diagnosis.runs.unrolled import Unrolled
from recollect.graph.gates import Kind

# Saturated: this share of a gate's values, or more, has less than 4 % of the largest derivative.
_SATURATED = 0.75
# A pre-activation that leaves a sigmoid between 0.05 and 0.95.
_MODERATE = 3.0
# Dead: this share of the ReLU units, or more, gives 0 in every row and step.
_DEAD = 0.1
# Shut: in this share of the units, or more, a step keeps less than so much of the state, in the mean.
_MOST, _HARDLY_ANY = 0.9, 0.05
# Open for good: after the whole sequence, so much of what the state held at its start is still there.
_NEARLY_ALL = 0.9
# Below so many steps neither can be told.
_FEWEST_STEPS = 10


def saturated_gate(case: Case) -> list[Finding]:
    """``"saturated_gate"``: three quarters of a gate's values lie where its derivative is below 4 % of the largest.

    A gate that decides how much of a state is kept is left to the two rules below: being open is what it is for.
    """
    found = []
    for unrolled, place in case.every:
        carry = carry_of(unrolled)
        for gate in unrolled.gates:
            seen = case.gates[f"{unrolled.name}.{gate}"]
            if (
                seen.kind not in ("sigmoid", "tanh")
                or (carry and carry.gate == gate)
                or seen.low + seen.high < _SATURATED
            ):
                continue
            bounds = "below 0.01 or above 0.99" if seen.kind == "sigmoid" else "beyond ±0.98"
            evidence = (
                f"{seen.low + seen.high:.0%} of the values of gate {gate} of {unrolled.name} lie {bounds}, "
                f"where less than 4 % of the largest gradient passes"
            )
            found.append(
                Finding("saturated_gate", "warning", evidence, _smaller(unrolled, place, gate, seen.kind), "model")
            )
    return found


def _smaller(unrolled: Unrolled, place: Place, gate: str, kind: Kind) -> str:
    """Code that makes the pre-activations so small that the gate answers again."""
    # The inverse of a saturated value is inf in the worst case: the quantile of what both shares add up to will do.
    size = (unrolled.leaves[f"inp.{gate}"] + unrolled.leaves[f"rec.{gate}"]).abs().flatten()
    large = float(np.quantile(size.cpu().numpy(), 0.95))
    factor = min((_MODERATE if kind == "sigmoid" else _MODERATE / 2) / large, 0.5)
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if unrolled.layer.bias else [])]
    parameters = ", ".join(place.parameter(name) for name in names)
    return "\n".join(
        [
            f"# {large:.3g} is a usual pre-activation of gate {gate}; bring it back to where the gate answers",
            "with torch.no_grad():",
            f"    for parameter in ({parameters}):",
            f"        parameter.mul_({factor:.2g})",
        ]
    )


def dead_units(case: Case) -> list[Finding]:
    """``"dead_units"``: a tenth of the ReLU units, or more, is 0 in all rows and steps: nothing teaches them."""
    found = []
    for unrolled, place in case.every:
        for gate in unrolled.gates:
            seen = case.gates[f"{unrolled.name}.{gate}"]
            dead = np.flatnonzero(seen.unit_low == 1.0)
            if seen.kind != "relu" or len(dead) < max(_DEAD * len(seen.unit_low), 1):
                continue
            rows, steps = len(unrolled.lengths), unrolled.lags
            evidence = (
                f"{len(dead)} of {len(seen.unit_low)} units of {unrolled.name} are 0 in all {rows} rows and {steps} "
                "steps: no gradient passes them"
            )
            found.append(Finding("dead_units", "warning", evidence, _revive(unrolled, place, gate, dead), "model"))
    return found


def _revive(unrolled: Unrolled, place: Place, gate: str, dead: np.ndarray) -> str:
    """Code that gives each dead unit a bias with which it fires for its strongest input at least."""
    if not unrolled.layer.bias:
        return "\n".join(["# start again from weights that keep a state as it is", *place.initialise("identity_({})")])
    strongest = (unrolled.leaves[f"inp.{gate}"] + unrolled.leaves[f"rec.{gate}"]).amax(0)[dead]
    lift = float((0.1 - strongest).max())
    units = place.rows(gate).start + dead
    return "\n".join(
        [
            "# lift the bias of the units that never fire until they do",
            "with torch.no_grad():",
            f"    {place.parameter('bias_ih')}[{units.tolist()}] += {lift:.3g}",
        ]
    )


def forget_gate_shut(case: Case) -> list[Finding]:
    """``"forget_gate_shut"``: in nine tenths of the units a step keeps less than 5 % of the state, in the mean."""
    found = []
    for unrolled, place in case.every:
        carry = carry_of(unrolled)
        if carry is None or unrolled.lags < _FEWEST_STEPS:
            continue
        means = unrolled.only_valid(carry.values).mean(0)
        if (means < _HARDLY_ANY).double().mean() < _MOST:
            continue
        name = f"{unrolled.name}.{carry.state}"
        evidence = f"a step keeps {float(means.mean()):.2g} of {name} in the mean: what it held is gone after two steps"
        found.append(Finding("forget_gate_shut", "warning", evidence, _set_bias(place, carry, 1.0), "model"))
    return found


def forget_gate_open(case: Case) -> list[Finding]:
    """``"forget_gate_open"``: in nine tenths of the units more than 90 % of what the state held before the first step
    is still there after the last one, in every row, so that nothing can be forgotten.
    """
    found = []
    for unrolled, place in case.every:
        carry = carry_of(unrolled)
        if carry is None or unrolled.lags < _FEWEST_STEPS:
            continue
        rows = torch.from_numpy(unrolled.rows[unrolled.valid]).to(carry.values.device)
        kept = carry.values.new_zeros(len(unrolled.lengths), carry.values.shape[1])
        kept.index_add_(0, rows, unrolled.only_valid(carry.values).log())
        long_enough = torch.from_numpy(unrolled.lengths >= _FEWEST_STEPS).to(kept.device)
        kept = kept[long_enough].exp().amin(0)
        if (kept > _NEARLY_ALL).double().mean() < _MOST:
            continue
        name, steps = f"{unrolled.name}.{carry.state}", unrolled.lags
        evidence = (
            f"after {steps} steps {name} still holds {float(kept.mean()):.1%} of what it held at the start: the gate "
            "never closes, so nothing is forgotten"
        )
        found.append(Finding("forget_gate_open", "warning", evidence, _set_bias(place, carry, 1.0), "model"))
    return found


def _set_bias(place: Place, carry: Carry, value: float) -> str:
    """Code that starts the gate which decides the carry so that it keeps sigmoid(value) of the state."""
    layer, gate = place.unrolled.layer, carry.gate
    if gate is None or not layer.bias:
        return "\n".join(["# start the recurrent weights anew, then train again", *place.initialise("orthogonal_({})")])
    if gate == "f" and carry.opens:
        return "\n".join(place.initialise(f"forget_bias_({{}}, {value})"))
    rows = place.rows(gate)
    return "\n".join(
        [
            "with torch.no_grad():",
            f"    {place.parameter('bias_ih')}[{rows.start}:{rows.stop}] = {value if carry.opens else -value}",
            f"    {place.parameter('bias_hh')}[{rows.start}:{rows.stop}] = 0.0",
        ]
    )
