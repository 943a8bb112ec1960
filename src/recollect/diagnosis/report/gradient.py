"""How the gradient goes back through time, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from recollect.diagnosis.charts import gradient as chart
from recollect.diagnosis.flow import Curve
from recollect.diagnosis.report import words
from recollect.diagnosis.report.page import escape

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

HOW_TO_READ = """<p>How strongly the loss depends on a state so many steps before a row's last: the root mean square
over rows of the norm of dL/ds, on a log scale. A ring marks the horizon, the last lag at which the gradient is
still 1 % of its start. Where a line is missing, the gradient is 0 or no longer a number.</p>"""


def section(diagnosis: Diagnosis) -> str:
    figures = "".join(_figure(diagnosis, title, names) for title, names in _groups(diagnosis).items())
    return f'<h2>Gradient by lag</h2>\n{HOW_TO_READ}\n<div class="figures">{figures}</div>\n'


def figure(title: str, curves: Mapping[str, Curve], horizons: Mapping[str, int]) -> str:
    """One chart of gradients by lag, with its caption and legend."""
    said = {name: words.horizon(horizon, len(curves[name])) for name, horizon in horizons.items()}
    label = f"Gradient against lag of {title}, log scale. Horizon " + "; ".join(
        f"of {name}: {reach}" for name, reach in said.items()
    )
    legend = "".join(
        f'<li><span class="key s{place % chart.STYLES}"></span>{escape(name)}: horizon {escape(reach)}</li>'
        for place, (name, reach) in enumerate(said.items())
    )
    return (
        f"<figure><figcaption><code>{escape(title)}</code></figcaption>"
        f"{chart.gradient_by_lag(curves, horizons, label)}<ul>{legend}</ul></figure>"
    )


def _groups(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """The curves of each layer and direction, the judged one first."""
    groups: dict[str, list[str]] = {}
    for name in sorted(diagnosis.curves, key=lambda each: words.parent(each) != words.parent(diagnosis.curve)):
        groups.setdefault(words.parent(name), []).append(name)
    return groups


def _figure(diagnosis: Diagnosis, title: str, names: list[str]) -> str:
    curves = {words.last(name): diagnosis.curves[name] for name in names}
    return figure(title, curves, {words.last(name): diagnosis.horizons[name] for name in names})
