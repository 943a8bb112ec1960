"""What a cell did while it ran: how far its gates were open, and how large its states were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recollect.diagnosis.flow import Curve, row_norms
from recollect.diagnosis.runs.unrolled import Unrolled
from recollect.graph.gates import Kind, activations

# Saturated is what has less than 4 % of the largest derivative: a sigmoid outside of these bounds, a tanh beyond its.
_SIGMOID = (0.01, 0.99)
_TANH = 0.98


@dataclass(frozen=True, eq=False)
class GateActivity:
    """The activation of one gate over all rows, steps and units.

    Attributes:
        kind: of its activation: ``"sigmoid"`` (0 shut, 1 open), ``"tanh"``, ``"relu"`` or ``"other"``.
        openness: [T] its mean over rows and units at each step in time; of the absolute value where it is a tanh.
        low, high: the share of all values that are saturated at the lower and the upper end: a sigmoid below 0.01 or
            above 0.99, a tanh beyond 0.98, a ReLU at 0; 0 where that has no meaning.
        unit_low, unit_high: [H] the same for each unit.
        example: [T, H] its values in the longest row, in the order of time.
    """

    kind: Kind
    openness: Curve
    low: float
    high: float
    unit_low: Curve
    unit_high: Curve
    example: Curve


def gate_activity(unrolled: Unrolled) -> dict[str, GateActivity]:
    """What each gate did that has an activation, by its name."""
    cell, found = unrolled.layer.cell, {}
    for gate, activation in activations(cell.graph, cell.gates).items():
        values = _whole(unrolled, unrolled.gates[gate])
        size = np.abs(values) if activation.kind == "tanh" else values
        low, high = (ends[unrolled.valid].mean(0) for ends in saturated(activation.kind, values))
        found[gate] = GateActivity(
            activation.kind, by_time(unrolled, size.mean(1)),
            float(low.mean()), float(high.mean()), low, high, values[unrolled.longest_row],
        )  # fmt: skip
    return found


def saturated(kind: Kind, values: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which values of an activation are saturated at its lower and at its upper end."""
    if kind == "sigmoid":
        return values < _SIGMOID[0], values > _SIGMOID[1]
    if kind == "tanh":
        return values < -_TANH, values > _TANH
    return (values <= 0 if kind == "relu" else np.zeros_like(values, bool)), np.zeros_like(values, bool)


def state_norms(unrolled: Unrolled) -> dict[str, Curve]:
    """The root mean square over rows of the norm of each state as it leaves each step, [T] in the order of time."""
    pairs = zip(unrolled.layer.cell.states, unrolled.states, strict=True)
    return {name: np.sqrt(by_time(unrolled, row_norms(state) ** 2)) for name, state in pairs}


def by_time(unrolled: Unrolled, values: NDArray[np.float64]) -> Curve:
    """The mean over the valid rows of each step in time, [T_max], of one number for each of the N stacked rows."""
    times, valid = unrolled.times[unrolled.valid], values[unrolled.valid]
    return np.bincount(times, valid, unrolled.lags) / np.bincount(times, minlength=unrolled.lags)


def _whole(unrolled: Unrolled, values: Tensor | float) -> NDArray[np.float64]:
    """Values of a node as an array [N, H]; a node of constants alone is a number."""
    like = unrolled.states[-1]
    return (like.new_zeros(like.shape) + values).cpu().numpy()
