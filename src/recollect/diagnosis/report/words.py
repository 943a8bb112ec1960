"""How a report names and says things."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

_VERDICTS = {
    "exploding": "The gradient explodes",
    "vanishing": "The gradient vanishes",
    "healthy": "The gradient is healthy",
}


def verdict(diagnosis: Diagnosis) -> str:
    return _VERDICTS[diagnosis.findings[0].kind]


def horizon(steps: int, of: int) -> str:
    return f"at least {of} steps, all there are" if steps == of else f"{steps} of {of} steps"


def parent(name: str) -> str:
    """The layer and direction of a state or gate: ``"rnn.l0"`` of ``"rnn.l0.h"``."""
    return name.rpartition(".")[0]


def last(name: str) -> str:
    """The state or gate itself: ``"h"`` of ``"rnn.l0.h"``."""
    return name.rpartition(".")[2]
