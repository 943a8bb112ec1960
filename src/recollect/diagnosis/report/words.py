"""How a report names and says things."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recollect.diagnosis.activity import GateActivity

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

_VERDICTS = {
    "exploding": "The gradient explodes",
    "vanishing": "The gradient vanishes",
    "healthy": "The gradient is healthy",
}

# What gates do in the cells whose gates have these names.
_LSTM = {
    "f": "What the cell kept",
    "i": "What it let in",
    "g": "What it might have let in",
    "o": "What it let out",
}
_ROLES = {
    frozenset("ifgo"): _LSTM,
    frozenset("fgo"): _LSTM,
    frozenset("rzn"): {
        "z": "What the cell kept",
        "r": "What the candidate saw of the past",
        "n": "What it might have let in",
    },
    frozenset("fn"): {"f": "What the cell let in, and forgot", "n": "What it might have let in"},
}


def verdict(diagnosis: Diagnosis) -> str:
    return _VERDICTS[diagnosis.findings[0].kind]


def sentence(evidence: str) -> str:
    """The evidence with a capital and a full stop; a name in code at its beginning stays as it is."""
    first = evidence.partition(" ")[0]
    return f"{evidence[:1].upper() + evidence[1:] if first.isalpha() else evidence}."


def horizon(steps: int, of: int) -> str:
    return f"at least {of} steps, all there are" if steps == of else f"{steps} of {of} steps"


def parent(name: str) -> str:
    """The layer and direction of a state or gate: ``"rnn.l0"`` of ``"rnn.l0.h"``."""
    return name.rpartition(".")[0]


def last(name: str) -> str:
    """The state or gate itself: ``"h"`` of ``"rnn.l0.h"``."""
    return name.rpartition(".")[2]


def by_layer(names: list[str], first: str) -> dict[str, list[str]]:
    """Names of states or gates by layer and direction, the one that ``first`` belongs to first."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda each: parent(each) != parent(first)):
        groups.setdefault(parent(name), []).append(name)
    return groups


def roles(gates: list[str]) -> dict[str, str]:
    """What each gate of a cell does, in the order of a story: kept, let in, let out. A gate of an unknown cell has no
    role but its name.
    """
    known = _ROLES.get(frozenset(gates), {})
    return {gate: known.get(gate, "") for gate in (known or gates)}


def activity(gate: GateActivity) -> str:
    """How far a gate was open, and how much of it answers no more."""
    mean = float(gate.openness.mean())
    if gate.kind == "sigmoid":
        stuck = f"saturated {gate.low:.0%} shut, {gate.high:.0%} open"
        if gate.low + gate.high < 0.005:
            stuck = "hardly ever saturated" if gate.low + gate.high else "never saturated"
        return f"{mean:.2f} open in the mean, {stuck}"
    if gate.kind == "tanh":
        return f"size {mean:.2f} in the mean, saturated {gate.low + gate.high:.0%}"
    if gate.kind == "relu":
        return f"{mean:.3g} in the mean, {gate.low:.0%} are 0"
    return f"{mean:.3g} in the mean"


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def more(hidden: int, what: str, where: str) -> str:
    """That not everything is drawn."""
    return f"<p class=note>{count(hidden, f'more {what}')}: see {where}.</p>" if hidden else ""
