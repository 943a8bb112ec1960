"""How the gradient goes back through time, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from recollect.diagnosis.charts import axes
from recollect.diagnosis.charts.gradient import gradient_by_lag
from recollect.diagnosis.charts.lines import STYLES, legend, lines
from recollect.diagnosis.flow import Curve
from recollect.diagnosis.report import words
from recollect.diagnosis.report.page import escape, figures, how_to_read
from recollect.diagnosis.report.page import figure as framed

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

HOW_TO_READ = how_to_read(
    "How strongly the loss depends on a state so many steps before a row's last: the root mean square over rows of the "
    "norm of dL/ds, on a log scale. A ring marks the horizon, the last lag at which the gradient is still 1 % of its "
    "start. Where a line is missing, the gradient is 0 or no longer a number."
)
# Of all that the steps teach the weights.
_MOST = 0.9
_MOST_LAYERS = 12


def section(diagnosis: Diagnosis) -> str:
    groups = words.by_layer(list(diagnosis.curves), diagnosis.curve)
    drawn = [_figure(diagnosis, title, names) for title, names in list(groups.items())[:_MOST_LAYERS]]
    hidden = words.more(len(groups) - len(drawn), "layer", "the table of gradients")
    return f"{HOW_TO_READ}\n{figures([*drawn, _weights(diagnosis)])}{hidden}"


def figure(title: str, curves: Mapping[str, Curve], horizons: Mapping[str, int]) -> str:
    """One chart of gradients by lag, with its caption and legend."""
    said = {name: words.horizon(horizon, len(curves[name])) for name, horizon in horizons.items()}
    label = f"Gradient against lag of {title}, log scale. Horizon " + "; ".join(
        f"of {name}: {reach}" for name, reach in said.items()
    )
    drawing = gradient_by_lag(curves, horizons, label)
    keys = legend({name: f"horizon {reach}" for name, reach in said.items()})
    return framed(f"<code>{escape(title)}</code>", drawing + keys)


def _figure(diagnosis: Diagnosis, title: str, names: list[str]) -> str:
    curves = {words.last(name): diagnosis.curves[name] for name in names}
    return figure(title, curves, {words.last(name): diagnosis.horizons[name] for name in names})


def _weights(diagnosis: Diagnosis) -> str:
    """Which steps still teach the weights."""
    judged = words.parent(diagnosis.curve)
    names = sorted(diagnosis.weight_curves, key=lambda name: name != judged)[:STYLES]
    curves = {name: diagnosis.weight_curves[name] for name in names}
    across = axes.steps(max(map(len, curves.values())) - 1, "lag in steps")
    said = {name: _share(curve) for name, curve in curves.items()}
    label = "What the steps of each lag add to dL/dW_hh, log scale. " + "; ".join(
        f"{name}: {share}" for name, share in said.items()
    )
    drawing = lines(curves, axes.decades(curves.values()), across, label) + legend(said)
    hidden = words.more(len(diagnosis.weight_curves) - len(names), "layer", "the table of gradients")
    read = how_to_read(
        "The norm of what all steps of one lag add to the gradient of the recurrent weights. These parts are matrices, "
        "which may point against each other; steps whose part is small leave no trace in an update."
    )
    return framed("Which steps still teach the weights <code>W_hh</code>", drawing + read + hidden)


def _share(curve: Curve) -> str:
    """How many of the last steps bring nine tenths of what the weights are taught."""
    finite = np.where(np.isfinite(curve), curve, 0.0)
    if not finite.any():
        return "no step teaches anything"
    total = np.cumsum(finite / finite.max())
    steps = 1 + int(np.searchsorted(total, _MOST * total[-1]))
    return (
        f"the last {steps} of {len(curve)} steps bring {_MOST:.0%}"
        if steps > 1
        else f"the last step brings {_MOST:.0%}"
    )
