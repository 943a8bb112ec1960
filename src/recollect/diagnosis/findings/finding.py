"""One thing that a diagnosis found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["error", "warning", "info"]
SEVERITIES = get_args(Severity)  # the worst first
When = Literal["never", "model", "data", "step", "loop"]


@dataclass(frozen=True)
class Finding:
    """One thing that a diagnosis found.

    Attributes:
        kind: what it is, such as ``"vanishing"``; the rules in this folder say when each is found.
        severity: ``"error"`` stops or spoils training, ``"warning"`` limits what can be learned, ``"info"``.
        evidence: the numbers that say so, in a sentence.
        remedy: Python code to paste, or "" where nothing is to be done. It speaks of ``model``, ``x``, ``y``,
            ``lengths``, ``loss`` (the number) and ``optimizer``.
        when: where the remedy belongs: ``"model"`` changes the model, once, before training; ``"data"`` the data;
            ``"step"`` stands in place of ``loss.backward(); optimizer.step()``; ``"loop"`` is how the training loop
            is to be written; ``"never"`` where there is no remedy.
    """

    kind: str
    severity: Severity
    evidence: str
    remedy: str
    when: When = "never"

    @property
    def title(self) -> str:
        """The kind as a person reads it: ``"Saturated gate"``."""
        return self.kind.replace("_", " ").capitalize()

    def __str__(self) -> str:
        remedy = "".join(f"\n    {line}" for line in self.remedy.splitlines())
        return f"{self.kind} ({self.severity}): {self.evidence}{remedy}"
