"""The short form of a diagnosis, for a terminal."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from recollect.diagnosis.flow import Curve
from recollect.diagnosis.report import memory, spectrum, training, words
from recollect.diagnosis.runs.call import join

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

_BARS = "▁▂▃▄▅▆▇█"
# Characters: of a line, and of what stands at its beginning.
_WIDTH, _NAMES = 100, 21


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
    """The short form, for a terminal. Only code may be wider than 100 characters."""
    curve = diagnosis.grad_norm_by_lag
    lines = [
        *_wrapped(f"{words.verdict(diagnosis)}: {diagnosis.curve}, {words.count(len(curve), 'step')}"),
        *_fact("|dL/ds| by lag", sparkline(curve)),
        *_fact("", f"{curve[0]:.3g} at lag 0, {curve[-1]:.3g} at lag {len(curve) - 1} (log scale)"),
        *_fact("gradient horizon", words.horizon(diagnosis.gradient_horizon, len(curve))),
        *_fact("memory horizon", memory.short(diagnosis)),
        *_fact("growth per step", f"{diagnosis.growth_per_step:.4g}"),
        *_fact("spectral radius", _radii(diagnosis)),
        *_fact("largest exponent", spectrum.short(diagnosis)),
    ]
    for name, seen in diagnosis.gates.items():
        if words.parent(name) == words.parent(diagnosis.curve):
            lines += _fact(f"gate {words.last(name)}", words.activity(seen))
    lines += _fact("training", training.short(diagnosis))
    for finding in diagnosis.findings:
        lines += _wrapped(f"{finding.kind} ({finding.severity}): {finding.evidence}", 2)
        lines += [f"    {line}" for line in finding.remedy.splitlines()]
    for note in diagnosis.notes:
        lines += _wrapped(f"note: {note}", 2)
    return "\n".join(lines)


def _radii(diagnosis: Diagnosis) -> str:
    """The spectral radius of the layer that is judged, by gate."""
    path, _, label = words.parent(diagnosis.curve).rpartition(".")
    weight = join(path, f"weight_hh_{label}")
    own = {name: value for name, value in diagnosis.spectral_radius.items() if f"{name}.".startswith(f"{weight}.")}
    radii = ", ".join(f"{value:.3g} {name[len(weight) + 1 :]}".strip() for name, value in own.items())
    return f"{radii} ({weight})"


def _fact(name: str, said: str) -> list[str]:
    """A line with its name to the left; none where there is nothing to say."""
    if not said:
        return []
    first, *rest = _wrapped(said, width=_WIDTH - _NAMES)
    return [f"  {name:<{_NAMES - 3}} {first}", *(" " * _NAMES + line for line in rest)]


def _wrapped(text: str, indent: int = 0, width: int = _WIDTH) -> list[str]:
    if len(text) <= width:  # as it is: a sparkline may begin or end with spaces
        return [text]
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
