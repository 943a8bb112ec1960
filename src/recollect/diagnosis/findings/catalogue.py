"""All rules, and the order in which a person reads what they found."""

from __future__ import annotations

from collections.abc import Callable

from recollect.diagnosis.findings import data, gates, gradient, states, training, windows
from recollect.diagnosis.findings.case import Case
from recollect.diagnosis.findings.finding import SEVERITIES, Finding

Rule = Callable[[Case], list[Finding]]

# The gradient itself, which a diagnosis is about.
GRADIENT: tuple[Rule, ...] = (gradient.exploding, gradient.vanishing)
# What may be behind it, or beside it.
BESIDE: tuple[Rule, ...] = (
    training.not_finite,
    data.input_scale,
    data.all_padding,
    gates.saturated_gate,
    gates.dead_units,
    gates.forget_gate_shut,
    gates.forget_gate_open,
    training.clip_threshold,
    windows.window_too_short,
)
# What takes further runs of the model.
THOROUGH: tuple[Rule, ...] = (states.state_drift,)


def judge(case: Case, *, thorough: bool) -> list[Finding]:
    """Name what is wrong.

    Returns:
        What there is to say of the gradient, ``"healthy"`` if nothing is wrong with it; then what else was found, the
        worst first.
    """
    verdict = [finding for rule in GRADIENT for finding in rule(case)] or [gradient.healthy(case)]
    rules = (*BESIDE, *THOROUGH) if thorough else BESIDE
    beside = [finding for rule in rules for finding in rule(case)]
    return verdict + sorted(beside, key=lambda finding: SEVERITIES.index(finding.severity))
