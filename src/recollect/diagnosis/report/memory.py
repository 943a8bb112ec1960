"""How far back an input still changes the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recollect.diagnosis.charts import axes
from recollect.diagnosis.charts.lines import legend, lines
from recollect.diagnosis.report import words
from recollect.diagnosis.report.page import escape, figure, figures, how_to_read, table

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis
    from recollect.diagnosis.memory.horizon import MemoryHorizon, Reach


def section(diagnosis: Diagnosis) -> str:
    memory = diagnosis.memory
    if memory is None:
        return ""
    reaches = {"by intervention": memory.by_intervention}
    if memory.by_gradient is not None:
        reaches["by gradient"] = memory.by_gradient
    rows = [
        [name, f"{'≥ ' if reach.censored else ''}{reach.horizon}", *(f"{each:.4g}" for each in reach.quartiles)]
        for name, reach in reaches.items()
    ]
    head = ["", "of all", "25 % of rows", "half", "75 %"]
    notes = "".join(f"<p class=note>Note: {escape(note)}.</p>" for note in memory.notes)
    return (
        f"<p class=answer>{escape(memory.answer)}</p>"
        + figures([_figure(memory, reaches), table("Memory horizon in steps", rows, head)])
        + notes
    )


def short(diagnosis: Diagnosis) -> str:
    """By intervention, in a few words."""
    memory = diagnosis.memory
    if memory is None:
        return ""
    reach = memory.by_intervention
    return f"{'at least ' if reach.censored else ''}{reach.horizon} of {memory.steps} steps"


def _said(reach: Reach) -> str:
    return f"{'at least ' if reach.censored else ''}{words.count(reach.horizon, 'step')}"


def _figure(memory: MemoryHorizon, reaches: dict[str, Reach]) -> str:
    curves = {name: reach.curve / (reach.curve.max(initial=0.0) or 1.0) for name, reach in reaches.items()}
    places = {name: reach.lags.astype(float) for name, reach in reaches.items()}
    rings = {
        name: int(np.searchsorted(reach.lags, reach.horizon - 1)) for name, reach in reaches.items() if reach.horizon
    }
    across = axes.steps(memory.steps - 1, "lag of the input in steps")
    threshold = f"{100 * memory.threshold:.3g} % of the largest effect"
    horizons = {name: f"horizon {_said(reach)}" for name, reach in reaches.items()}
    label = f"Effect of the input at each lag on the answer, as a share of the largest, log scale. {threshold} counts; "
    label += "; ".join(f"{name}: {horizon}" for name, horizon in horizons.items())
    drawing = lines(
        curves, axes.decades(curves.values()), across, label, places=places, rings=rings, levels=[memory.threshold]
    )
    read = how_to_read(
        "By intervention: how far the answer moves when the input of one step is replaced by another that occurs; that "
        "is what the model remembers. By gradient: how steeply the answer depends on it; that is what it can learn."
    )
    return figure("Effect of an input on the answer, log scale", drawing + legend(horizons, level=threshold) + read)
