"""One step of one sequence: what the gates were, what the states became, and how the loss depends on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from recollect.cells import Cell
from recollect.diagnosis.activity import saturated
from recollect.diagnosis.runs.call import choose
from recollect.diagnosis.runs.recording import record
from recollect.diagnosis.runs.unrolled import Unrolled
from recollect.errors import InputError
from recollect.graph.drawing import Reading
from recollect.graph.gates import activations

_UNITS = 4  # shown one by one in a terminal
_WIDTH = 11


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the table: a gate, a state or the gradient of one.

    Attributes:
        kind: which of them.
        name: of the gate or state.
        values: [H], one for each unit.
        saturated: the share of units where a gate is saturated, as `GateActivity` counts; None where that has no
            meaning.
    """

    kind: Literal["gate", "state", "gradient"]
    name: str
    values: NDArray[np.float64]
    saturated: float | None = None

    @property
    def title(self) -> str:
        return f"dL/d{self.name}" if self.kind == "gradient" else f"{self.kind} {self.name}"


@dataclass(frozen=True, eq=False)
class Moment:
    """One step of one layer and direction, in one row.

    Attributes:
        name: of module, level and direction, such as ``"rnn.l0"``.
        path: of the module alone, "" for a bare layer.
        cell: of that layer.
        step: its place in time, from 0.
        steps: the valid steps of the row.
        rows: gates, then states as they leave the step, then dL/d of gates and states.
        readings: for the drawing of the step; see `draw_step`.
        norms: (state, step) -> the norm of the state as it leaves the step and of dL/ds, of the steps beside it.
        loss: L, the number whose gradient it is.
    """

    name: str
    path: str
    cell: Cell
    step: int
    steps: int
    rows: tuple[Row, ...]
    readings: dict[str, Reading]
    norms: dict[tuple[str, int], tuple[float, float]]
    loss: float

    def __str__(self) -> str:
        units = range(min(_UNITS, min(len(row.values) for row in self.rows)))
        head = ["mean", "min", "max", "norm", "saturated", *(f"unit {unit}" for unit in units)]
        width = max(len(row.title) for row in self.rows) + 2
        lines = [self.title, "", " " * width + "".join(f"{each:>{_WIDTH}}" for each in head)]
        for row in self.rows:
            cells = [*summary(row), *(number(value) for value in row.values[: len(units)])]
            lines.append(f"{row.title:{width}}" + "".join(f"{each:>{_WIDTH}}" for each in cells))
        return "\n".join(lines)

    @property
    def title(self) -> str:
        return f"{self.name} at step {self.step} of 0 to {self.steps - 1}, L = {self.loss:.6g}"


def summary(row: Row) -> list[str]:
    """Mean, least, most, norm and the share of saturated units, as text."""
    values = row.values
    share = "" if row.saturated is None else f"{row.saturated:.0%}"
    return [*map(number, (values.mean(), values.min(), values.max(), float(np.linalg.norm(values)))), share]


def number(value: float) -> str:
    """A number of a table."""
    return f"{value:.3g}"


def moment(model: nn.Module, x: Any, target: Any, loss: Any, *, lengths: Any, layer: str | None, step: int) -> Moment:
    """Run a copy of a model once and look at one step; see `describe`.

    Raises:
        InputError: as `diagnose`; or there is no such step.
    """
    calls, value = record(model, x, target, loss, lengths)
    _, unrolled, _ = choose(calls, layer)
    places = unrolled.longest_row
    if not -len(places) <= step < len(places):
        raise InputError(
            "the sequence has no such step",
            given=f"step {step}",
            expected=f"0 to {len(places) - 1}, or -1 to {-len(places)} from its end",
        )
    at = step % len(places)
    return _moment(unrolled, places, at, value)


def _moment(unrolled: Unrolled, places: NDArray[np.int64], at: int, loss: float) -> Moment:
    cell = unrolled.layer.cell
    here = int(places[at])

    def values(stacked: Tensor | float, place: int = here) -> NDArray[np.float64]:
        like = unrolled.leaves[f"inp.{cell.gates[0]}"][place]
        whole = stacked[place] if isinstance(stacked, Tensor) and stacked.dim() == 2 else stacked
        return (whole if isinstance(whole, Tensor) else like.new_zeros(like.shape) + whole).double().cpu().numpy()

    states = dict(zip(cell.states, unrolled.states, strict=True))
    before = dict(zip(cell.states, unrolled.before, strict=True))
    gradients = dict(zip(cell.states, unrolled.state_gradients, strict=True))
    found = activations(cell.graph, cell.gates)
    gates = {gate: values(each) for gate, each in unrolled.gates.items()}
    gate_gradients = {gate: values(each) for gate, each in unrolled.gate_gradients.items()}
    rows = [Row("gate", gate, each, _saturated(found[gate].kind, each)) for gate, each in gates.items()]
    rows += [Row("state", state, values(each)) for state, each in states.items()]
    rows += [Row("gradient", gate, each) for gate, each in gate_gradients.items()]
    rows += [Row("gradient", state, values(each)) for state, each in gradients.items()]

    readings = {str(node): Reading(values(each).tolist()) for node, each in enumerate(unrolled.nodes())}
    for gate, each in found.items():
        readings[str(each.node)] = Reading(gates[gate].tolist(), _norm(gate_gradients[gate]))
    earlier = at + 1 if unrolled.reverse else at - 1  # the step that was processed before this one
    for state in cell.states:
        readings[state] = Reading(values(states[state]).tolist(), _norm(values(gradients[state])))
        began = values(before[state])
        gradient = None
        if 0 <= earlier < len(places) and np.array_equal(began, values(states[state], int(places[earlier]))):
            gradient = _norm(values(gradients[state], int(places[earlier])))
        readings[f"prev.{state}"] = Reading(began.tolist(), gradient)
    norms = {
        (state, beside): (
            _norm(values(states[state], int(places[beside]))),
            _norm(values(gradients[state], int(places[beside]))),
        )
        for state in cell.states
        for beside in range(max(at - 2, 0), min(at + 3, len(places)))
    }
    path = unrolled.name.removesuffix(unrolled.label).rstrip(".")
    return Moment(unrolled.name, path, cell, at, len(places), tuple(rows), readings, norms, loss)


def _saturated(kind: Any, values: NDArray[np.float64]) -> float | None:
    low, high = saturated(kind, values)
    return None if kind == "other" else float((low | high).mean())


def _norm(values: Sequence[float] | NDArray[np.float64]) -> float:
    return math.hypot(*values)
