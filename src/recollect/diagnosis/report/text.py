"""The short form of a diagnosis, for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from recollect.diagnosis.call import join
from recollect.diagnosis.flow import Curve
from recollect.diagnosis.report import words

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(curve: Curve, width: int = 60, decades: float | None = None) -> str:
    """Draw a gradient by lag in one line, on a log scale: lag 0 first, a space for 0, ``!`` for no number.

    Args:
        curve: [T].
        width: characters, at most.
        decades: the scale goes so many powers of ten down from the curve's highest value, so that lines
            can be compared; None shows the whole curve, over at least two, so that a flat one looks flat.
    """
    places = np.unique(np.linspace(0, len(curve) - 1, min(width, len(curve))).round().astype(int))
    values = curve[places]
    logs = [math.log10(value) if math.isfinite(value) and value > 0 else None for value in values]
    known = [each for each in logs if each is not None]
    top = max(known, default=0.0)
    low = min(min(known, default=0.0), top - 2) if decades is None else top - decades
    bars = []
    for value, each in zip(values, logs, strict=True):
        if each is None:
            bars.append(" " if value == 0 else "!")
        else:
            bars.append(_BARS[max(0, round((each - low) / (top - low) * (len(_BARS) - 1)))])
    return "".join(bars)


def to_text(diagnosis: Diagnosis) -> str:
    """The short form, for a terminal."""
    curve = diagnosis.grad_norm_by_lag
    path, _, label = words.parent(diagnosis.curve).rpartition(".")
    weight = join(path, f"weight_hh_{label}")
    own = {name: value for name, value in diagnosis.spectral_radius.items() if f"{name}.".startswith(f"{weight}.")}
    radii = ", ".join(f"{value:.3g} {name[len(weight) + 1 :]}".strip() for name, value in own.items())
    lines = [
        f"{words.verdict(diagnosis)}: {diagnosis.curve}, {len(curve)} steps",
        f"  |dL/ds| by lag     {sparkline(curve)}",
        f"                     {curve[0]:.3g} at lag 0, {curve[-1]:.3g} at lag {len(curve) - 1} (log scale)",
        f"  gradient horizon   {words.horizon(diagnosis.gradient_horizon, len(curve))}",
        f"  growth per step    {diagnosis.growth_per_step:.4g}",
        f"  spectral radius    {radii} ({weight})",
    ]
    for finding in diagnosis.findings:
        lines += [f"{finding.kind} ({finding.severity}): {finding.evidence}"]
        lines += [f"    {line}" for line in finding.remedy.splitlines()]
    return "\n".join(lines + [f"note: {note}" for note in diagnosis.notes])
