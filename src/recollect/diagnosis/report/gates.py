"""What the gates did over time, beside the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recollect.diagnosis.activity import GateActivity
from recollect.diagnosis.charts import axes, heatmap
from recollect.diagnosis.charts.axes import Axis
from recollect.diagnosis.charts.lines import STYLES, legend, lines
from recollect.diagnosis.report import words
from recollect.diagnosis.report.page import escape, figure, how_to_read

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

_MOST_LAYERS, _MOST_MAPS = 6, 24
_SHARES, _SIGNS = "viridis", "coolwarm"


def section(diagnosis: Diagnosis) -> str:
    groups = words.by_layer(list(diagnosis.gates), diagnosis.curve)
    drawn: list[str] = []
    maps = 0
    for layer, names in groups.items():
        maps += len(names)
        if drawn and (maps > _MOST_MAPS or len(drawn) == _MOST_LAYERS):
            break
        drawn.append(_layer(diagnosis, layer, names[:_MOST_MAPS]))
    if not drawn:
        return ""
    return (
        how_to_read(
            "One sequence, the longest row, in the order of time: its input, the norm of the states, and below them "
            "each gate, a line for each unit, those that are most open on top. Numbers are of all rows. "
            f"{heatmap.key('0, shut', '1, open', _SHARES, 'gates from 0 to 1')} "
            f"{heatmap.key('−1', '1', _SIGNS, 'what lies between −1 and 1')}"
        )
        + "".join(drawn)
        + words.more(len(groups) - len(drawn), "layer", "the table of gates")
    )


def _layer(diagnosis: Diagnosis, layer: str, names: list[str]) -> str:
    gates = {words.last(name): diagnosis.gates[name] for name in names}
    steps = max(len(each.example) for each in gates.values())
    across = axes.steps(steps - 1, "step in time", cells=True)
    tracks = [_input(diagnosis, layer, across), _states(diagnosis, layer, across)]
    order = words.roles(list(gates))
    for gate, role in order.items():
        tracks.append(_gate(layer, gate, role, gates[gate], across, named=gate == list(order)[-1]))
    return figure(f"<code>{escape(layer)}</code>", "".join(tracks), wide=True)


def _track(title: str, said: str, drawing: str) -> str:
    return f'<div class="track"><p>{title} <span class="said">{escape(said)}</span></p>{drawing}</div>'


def _input(diagnosis: Diagnosis, layer: str, across: Axis) -> str:
    path = layer.rpartition(".")[0]
    if path not in diagnosis.example:
        return ""
    values = diagnosis.example[path]
    shown = {f"feature {number}": values[:, number] for number in range(min(values.shape[1], STYLES))}
    said = f"{values.shape[1]} features, the first {STYLES} of them" if values.shape[1] > STYLES else ""
    up = axes.linear(shown.values(), most=3)
    label = f"Input of {layer} over {len(values)} steps, from {values.min():.3g} to {values.max():.3g}"
    drawing = lines(shown, up, across, label, height=64, named=False)
    keys = legend(dict.fromkeys(shown, "")) if len(shown) > 1 else ""
    return _track("<b>Input</b>", said, drawing + keys)


def _states(diagnosis: Diagnosis, layer: str, across: Axis) -> str:
    shown = {words.last(name): norms for name, norms in diagnosis.state_norms.items() if words.parent(name) == layer}
    up = axes.linear([*shown.values(), np.zeros(1)], most=3)
    label = f"Norm of the states of {layer} over time: " + ", ".join(
        f"{name} ends at {norms[-1]:.3g}" for name, norms in shown.items()
    )
    drawing = lines(shown, up, across, label, height=52, named=False)
    return _track("<b>Norm of the states</b>", "root mean square over rows", drawing + legend(dict.fromkeys(shown, "")))


def _gate(layer: str, gate: str, role: str, seen: GateActivity, across: Axis, *, named: bool) -> str:
    values, said = seen.example, words.activity(seen)
    size = np.abs(values) if seen.kind == "tanh" else values
    order = np.argsort(-size.mean(0), kind="stable")
    low, high, colours = _range(seen)
    label = f"{role or 'Gate'} ({gate}) of {layer}, {values.shape[1]} units over {len(values)} steps: {said}"
    drawing = heatmap.heatmap(values[:, order].T, low, high, across, label, colours=colours, named=named)
    title = f"<b>{escape(role)}</b> <code>{escape(gate)}</code>" if role else f"<b>Gate</b> <code>{escape(gate)}</code>"
    beyond = "" if seen.kind in ("sigmoid", "tanh") else f"; colours from {low:.3g} to {high:.3g}"
    return _track(title, f"{values.shape[1]} units, {said}{beyond}", drawing)


def _range(seen: GateActivity) -> tuple[float, float, str]:
    """What the first and the last colour stand for; the same for every gate of a kind that has limits."""
    if seen.kind == "sigmoid":
        return 0.0, 1.0, _SHARES
    if seen.kind == "tanh":
        return -1.0, 1.0, _SIGNS
    low, high = float(seen.example.min()), float(seen.example.max())
    if low < 0 < high:
        return -max(-low, high), max(-low, high), _SIGNS
    return min(low, 0.0), max(high, 0.0), _SHARES
