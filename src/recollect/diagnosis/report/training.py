"""How training went, where a probe watched it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recollect.diagnosis.charts import axes, heatmap
from recollect.diagnosis.charts.axes import Axis
from recollect.diagnosis.charts.lines import STYLES, legend, lines
from recollect.diagnosis.flow import Curve
from recollect.diagnosis.report import words
from recollect.diagnosis.report.page import escape, figure, figures, how_to_read

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis
    from recollect.diagnosis.probe.observer import Probe
    from recollect.diagnosis.probe.probed import ProbedLayer

# A loss that spans so much is shown on a log scale.
_SPANS = 30.0
# Powers of ten that colours tell apart.
_DECADES = 8
# If the norms after clipping differ by no more, they are the limit.
_SAME = 1e-3


def section(diagnosis: Diagnosis) -> str:
    probe = diagnosis.training
    if probe is None or not probe.losses:
        return ""
    across = axes.steps(len(probe.losses) - 1, "step of training")
    name, layers = _judged(diagnosis, probe)
    drawn = [_losses(probe, across), _norms(probe, across), _updates(probe, across)]
    if layers:
        drawn += [_gates(name, layers, across), _by_lag(diagnosis, name, layers)]
    return f"<p class=answer>{escape(_answer(probe))}</p>" + figures([each for each in drawn if each])


def short(diagnosis: Diagnosis) -> str:
    """How many of the steps were clipped, and to what."""
    probe = diagnosis.training
    return "" if probe is None or not probe.losses else _clipped(probe)


def _clipped(probe: Probe) -> str:
    scales = np.array(probe.scales)
    count, skipped = int(((scales > 0) & (scales < 1)).sum()), int((scales == 0).sum())
    limit = _limit(probe)
    said = f"{count} of {len(scales)} steps clipped" + (f" to {limit:.3g}" if limit is not None else "")
    return said + (f", {skipped} skipped" if skipped else "")


def _answer(probe: Probe) -> str:
    lost = probe.non_finite
    if lost is None:
        return f"{_clipped(probe)}. The loss went from {probe.losses[0]:.4g} to {probe.losses[-1]:.4g}."
    why = "the loss or its gradient" if lost.culprit is None else str(lost.culprit)
    return f"{_clipped(probe)}. First not finite in epoch {lost.epoch + 1}, step {lost.step + 1}: {why}."


def _limit(probe: Probe) -> float | None:
    """The norm that gradients were clipped to, where it was one and the same."""
    after = np.array([n * s for n, s in zip(probe.norms, probe.scales, strict=True) if 0 < s < 1])
    return float(np.median(after)) if len(after) and np.ptp(after) <= _SAME * after.max() else None


def _losses(probe: Probe, across: Axis) -> str:
    values = np.array(probe.losses)
    known = values[np.isfinite(values)]
    wide = len(known) > 0 and known.min() > 0 and known.max() > _SPANS * known.min()
    up = axes.decades([values]) if wide else axes.linear([values])
    label = f"Loss over {len(values)} steps of training, from {values[0]:.4g} to {values[-1]:.4g}"
    return figure("Loss" + (", log scale" if wide else ""), lines({"loss": values}, up, across, label))


def _norms(probe: Probe, across: Axis) -> str:
    values, scales, limit = np.array(probe.norms), np.array(probe.scales), _limit(probe)
    marks = np.flatnonzero(scales < 1)
    known = values[np.isfinite(values)]
    label = f"Global gradient norm over {len(values)} steps of training before clipping, log scale"
    if len(known):
        label += f", median {np.median(known):.3g}, largest {known.max():.3g}; {_clipped(probe)}"
    levels = [] if limit is None else [limit]
    up = axes.decades([values, np.array(levels)])
    drawing = lines({"norm": values}, up, across, label, levels=levels, marks=marks)
    keys = legend(
        {"norm before clipping": ""},
        level="" if limit is None else f"limit {limit:.3g}",
        marks=_clipped(probe) if len(marks) else "",
    )
    read = how_to_read(
        "What stands above the limit was scaled down to it. A limit that clips now and then tames cliffs; one that "
        "clips nearly always sets the length of each step in place of the gradient."
    )
    return figure("Gradient norm, log scale", drawing + keys + read)


def _updates(probe: Probe, across: Axis) -> str:
    """The largest, middle and smallest change of a parameter, relative to its size."""
    ratios = [np.array(list(step.updates.values())) for step in probe.steps if step.updates]
    if not ratios:
        return ""
    at = np.array([step.index for step in probe.steps if step.updates], dtype=float)
    curves = {
        "largest": np.array([each.max() for each in ratios]),
        "median": np.array([np.median(each) for each in ratios]),
        "smallest": np.array([each.min() for each in ratios]),
    }
    up = axes.decades(curves.values())
    label = f"Update-to-weight ratio in {len(at)} steps of training, log scale; at last " + ", ".join(
        f"{name} {curve[-1]:.2g}" for name, curve in curves.items()
    )
    drawing = lines(curves, up, across, label, places=dict.fromkeys(curves, at))
    keys = legend({f"{name} of the parameters": "" for name in curves})
    read = how_to_read(
        "The norm of what a step changed over the norm of what was there. Around 10⁻³ is usual; far above it weights "
        "are thrown about, far below nothing is learned."
    )
    return figure("Update-to-weight ratio, log scale", drawing + keys + read)


def _judged(diagnosis: Diagnosis, probe: Probe) -> tuple[str, dict[int, ProbedLayer]]:
    """The layer that the diagnosis judges, else the first, in the steps in which it was probed."""
    names = [name for step in probe.steps for name in step.layers]
    wanted = words.parent(diagnosis.curve)
    name = wanted if wanted in names else next(iter(names), "")
    return name, {step.index: step.layers[name] for step in probe.steps if name in step.layers}


def _gates(name: str, layers: dict[int, ProbedLayer], across: Axis) -> str:
    gates = list(next(iter(layers.values())).gates)
    order = [gate for gate in words.roles(gates) if gate in gates][:STYLES]
    if not order:
        return ""
    curves = {gate: np.array([each.gates[gate].openness.mean() for each in layers.values()]) for gate in order}
    places = dict.fromkeys(curves, np.array(list(layers), dtype=float))
    label = f"Mean activation of the gates of {name} over training; at last " + ", ".join(
        f"{gate} {curve[-1]:.2f}" for gate, curve in curves.items()
    )
    drawing = lines(curves, axes.linear([*curves.values(), np.zeros(1)]), across, label, places=places)
    roles = words.roles(gates)
    return figure(
        f"How open the gates of <code>{escape(name)}</code> were",
        drawing + legend({gate: roles[gate][:1].lower() + roles[gate][1:] for gate in order}),
    )


def _by_lag(diagnosis: Diagnosis, name: str, layers: dict[int, ProbedLayer]) -> str:
    states = next(iter(layers.values())).grad_norm_by_lag
    state = words.last(diagnosis.curve) if words.last(diagnosis.curve) in states else next(iter(states))
    curves = [each.grad_norm_by_lag[state] for each in layers.values()]
    logs = _logs(curves)
    known = logs[np.isfinite(logs)]
    if not len(known):
        return ""
    top = float(np.ceil(known.max()))
    low = max(float(np.floor(known.min())), top - _DECADES)
    across = axes.spaced(np.array(list(layers), dtype=float), "step of training")
    up = axes.steps(len(logs) - 1, "lag", cells=True)
    label = f"Gradient against lag of {name}.{state} in {len(curves)} steps of training; bright is large"
    drawing = heatmap.heatmap(np.maximum(logs, low)[::-1], low, top, across, label, up=up, height=160)
    strip = heatmap.key(axes.power_of_ten(int(low)), axes.power_of_ten(int(top)), "viridis", "gradients by size")
    read = how_to_read(
        "A column for each step that was probed, lag 0 at the bottom. How far up it stays bright is how far back that "
        f"step of training learned from. {strip}"
    )
    return figure(f"Gradient by lag of <code>{escape(name)}.{escape(state)}</code> over training", drawing + read)


def _logs(curves: list[Curve]) -> NDArray[np.float64]:
    """[T, n] their logarithms: -inf for 0, NaN where there is no such lag or no number."""
    logs = np.full((max(map(len, curves)), len(curves)), np.nan)
    for column, curve in enumerate(curves):
        with np.errstate(divide="ignore", invalid="ignore"):
            logs[: len(curve), column] = np.log10(np.where(np.isfinite(curve), curve, np.nan))
    return logs
