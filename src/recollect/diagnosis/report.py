"""A diagnosis to read: in a terminal, and as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from recollect.diagnosis.call import join
from recollect.diagnosis.charts import gradient as chart
from recollect.diagnosis.flow import Curve

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

HOW_TO_READ = """<p>How strongly the loss depends on a state so many steps before a row's last: the root mean square
over rows of the norm of dL/ds, on a log scale. A ring marks the horizon, the last lag at which the gradient is
still 1 % of its start. Where a line is missing, the gradient is 0 or no longer a number.</p>"""

_BARS = "▁▂▃▄▅▆▇█"
_VERDICTS = {
    "exploding": "The gradient explodes",
    "vanishing": "The gradient vanishes",
    "healthy": "The gradient is healthy",
}


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
    path, _, label = _parent(diagnosis.curve).rpartition(".")
    weight = join(path, f"weight_hh_{label}")
    own = {name: value for name, value in diagnosis.spectral_radius.items() if f"{name}.".startswith(f"{weight}.")}
    radii = ", ".join(f"{value:.3g} {name[len(weight) + 1 :]}".strip() for name, value in own.items())
    lines = [
        f"{_verdict(diagnosis)}: {diagnosis.curve}, {len(curve)} steps",
        f"  |dL/ds| by lag     {sparkline(curve)}",
        f"                     {curve[0]:.3g} at lag 0, {curve[-1]:.3g} at lag {len(curve) - 1} (log scale)",
        f"  gradient horizon   {_horizon(diagnosis.gradient_horizon, len(curve))}",
        f"  growth per step    {diagnosis.growth_per_step:.4g}",
        f"  spectral radius    {radii} ({weight})",
    ]
    for finding in diagnosis.findings:
        lines += [f"{finding.kind} ({finding.severity}): {finding.evidence}"]
        lines += [f"    {line}" for line in finding.remedy.splitlines()]
    return "\n".join(lines + [f"note: {note}" for note in diagnosis.notes])


def to_html(diagnosis: Diagnosis) -> str:
    """The report: the verdict, the curves, the numbers, and what to do."""
    findings = "".join(
        f'<section class="finding {finding.severity}"><h3>{_e(finding.title)}</h3>'
        f"<p>{_e(finding.evidence)}.</p>"
        + (f"<p>What helps:</p><pre><code>{_e(finding.remedy)}</code></pre>" if finding.remedy else "")
        + "</section>"
        for finding in diagnosis.findings
    )
    notes = "".join(f"<p class=note>Note: {_e(note)}.</p>" for note in diagnosis.notes)
    curve, steps = diagnosis.grad_norm_by_lag, len(diagnosis.grad_norm_by_lag)
    facts = {
        "Gradient horizon": _horizon(diagnosis.gradient_horizon, steps),
        "Growth per step": f"{diagnosis.growth_per_step:.4g}",
        "At lag 0": f"{curve[0]:.3g}",
        f"At lag {steps - 1}": f"{curve[-1]:.3g}",
    }
    listed = "".join(f"<div><dt>{_e(name)}</dt><dd>{_e(value)}</dd></div>" for name, value in facts.items())
    figures = "".join(_figure(diagnosis, title, names) for title, names in _groups(diagnosis).items())
    finding = diagnosis.findings[0]
    return page(
        f"{_verdict(diagnosis)}: {diagnosis.curve}",
        f"""<header class="{finding.severity}">
<h1>{_e(_verdict(diagnosis))}</h1>
<p>{_e(finding.evidence)}.</p>
</header>
<p>Judged by <code>{_e(diagnosis.curve)}</code> over {steps} steps; L = {diagnosis.loss:.6g}.</p>
{notes}<dl>{listed}</dl>
<h2>Gradient by lag</h2>
{HOW_TO_READ}
<div class="figures">{figures}</div>
<h2>Findings</h2>
{findings}
<h2>Numbers</h2>
{_curve_table(diagnosis)}
{_radius_table(diagnosis)}""",
    )


def page(title: str, body: str) -> str:
    """A whole HTML document that needs no other file and lets nothing in."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_e(title)}</title>
<style>
{files("recollect.diagnosis").joinpath("report.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def figure(title: str, curves: Mapping[str, Curve], horizons: Mapping[str, int]) -> str:
    """One chart of gradients by lag, with its caption and legend."""
    said = {name: _horizon(horizon, len(curves[name])) for name, horizon in horizons.items()}
    label = f"Gradient against lag of {title}, log scale. Horizon " + "; ".join(
        f"of {name}: {words}" for name, words in said.items()
    )
    legend = "".join(
        f'<li><span class="key s{place % chart.STYLES}"></span>{_e(name)}: horizon {_e(words)}</li>'
        for place, (name, words) in enumerate(said.items())
    )
    return (
        f"<figure><figcaption><code>{_e(title)}</code></figcaption>"
        f"{chart.gradient_by_lag(curves, horizons, label)}<ul>{legend}</ul></figure>"
    )


def _verdict(diagnosis: Diagnosis) -> str:
    return _VERDICTS[diagnosis.findings[0].kind]


def _horizon(horizon: int, steps: int) -> str:
    return f"at least {steps} steps, all there are" if horizon == steps else f"{horizon} of {steps} steps"


def _groups(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """The curves of each layer and direction, the judged one first."""
    groups: dict[str, list[str]] = {}
    for name in sorted(diagnosis.curves, key=lambda each: _parent(each) != _parent(diagnosis.curve)):
        groups.setdefault(_parent(name), []).append(name)
    return groups


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _figure(diagnosis: Diagnosis, title: str, names: list[str]) -> str:
    curves = {name.rpartition(".")[2]: diagnosis.curves[name] for name in names}
    return figure(title, curves, {name.rpartition(".")[2]: diagnosis.horizons[name] for name in names})


def _curve_table(diagnosis: Diagnosis) -> str:
    steps = max(map(len, diagnosis.curves.values()))
    lags = sorted({0, steps - 1, *(m * 10**e for e in range(7) for m in (1, 2, 5) if m * 10**e < steps)})
    head = "".join(f"<th scope=col>{_e(name)}</th>" for name in diagnosis.curves)
    rows = [
        f"<tr><th scope=row>lag {lag}</th>"
        + "".join(
            f"<td>{curve[lag]:.3g}</td>" if lag < len(curve) else "<td></td>" for curve in diagnosis.curves.values()
        )
        + "</tr>"
        for lag in lags
    ]
    horizons = "".join(f"<td>{diagnosis.horizons[name]}</td>" for name in diagnosis.curves)
    return (
        '<div class="wide"><table><caption>Gradient by lag</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}"
        f"<tr><th scope=row>horizon</th>{horizons}</tr></tbody></table></div>"
    )


def _radius_table(diagnosis: Diagnosis) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_e(name)}</th><td>{value:.4g}</td></tr>"
        for name, value in diagnosis.spectral_radius.items()
    )
    return (
        '<div class="wide"><table><caption>Spectral radius of W_hh: its largest absolute eigenvalue</caption>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _e(text: str) -> str:
    return html.escape(text)
