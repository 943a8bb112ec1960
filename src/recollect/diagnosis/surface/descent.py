"""Gradient descent within a plane through the weights, with clipping and without, and how it meets a cliff."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.diagnosis.surface.cliffs import Cliffs
from recollect.diagnosis.surface.landscape import Landscape
from recollect.diagnosis.surface.plane import Plane

Point = NDArray[np.float64]
Grid = NDArray[np.float64]

# A step at the mean slope goes so far, in widths of the plane.
_STEP = 0.02
# Descent starts so many widths uphill of the steepest place, or nearer, where the slope is this share of the mean.
_UPHILL, _MOVING = 0.1, 0.5
_HALVINGS = 30


class Brink(NamedTuple):
    """The steepest place of the cliffs.

    Attributes:
        place: its two coordinates.
        loss: there.
        gradient: [2] in the plane; its norm is what clipping bounds.
    """

    place: tuple[float, float]
    loss: float
    gradient: tuple[float, float]

    @property
    def norm(self) -> float:
        return math.hypot(*self.gradient)


class Surroundings:
    """The loss in a plane: at a place, and its gradient there."""

    def __init__(self, landscape: Landscape, plane: Plane) -> None:
        self._landscape, self._plane = landscape, plane

    def loss(self, place: Point) -> float:
        return self._landscape(self._plane.at(place))

    def gradient(self, place: Point) -> tuple[float, Point]:
        value, gradient = self._landscape.gradient(self._plane.at(place))
        return value, self._plane.gradient(gradient)


def find_brink(around: Surroundings, x: Point, y: Point, loss: Grid, cliffs: Cliffs) -> Brink | None:
    """Halve the steepest step of the grid, always keeping the steeper half, until both halves are equally steep.

    Returns:
        None if there is no cliff, or no finite gradient at its edge.
    """
    if cliffs.between is None:
        return None
    ends = [(np.array([x[column], y[row]]), float(loss[row, column])) for row, column in cliffs.between]
    for _ in range(_HALVINGS):
        (low, at_low), (high, at_high) = ends
        middle = (low + high) / 2
        between = around.loss(middle)
        halves = _change(at_low, between), _change(between, at_high)
        if math.isfinite(max(halves)) and max(halves) < 0.6 * _change(at_low, at_high):
            break
        ends = [ends[0], (middle, between)] if halves[0] >= halves[1] else [(middle, between), ends[1]]
    finite = [place for place, value in ends if math.isfinite(value)]
    place = np.mean(finite, axis=0)
    value, gradient = around.gradient(place)
    if not (math.isfinite(value) and np.isfinite(gradient).all()):
        return None
    return Brink((float(place[0]), float(place[1])), value, (float(gradient[0]), float(gradient[1])))


def mean_slope(x: Point, y: Point, loss: Grid, cliffs: Cliffs) -> float:
    """The mean norm of the gradient over the grid, by finite differences, away from cliffs; 0 if it cannot be told."""
    with np.errstate(invalid="ignore", over="ignore"):
        up, across = np.gradient(loss, y, x)
        norms = np.hypot(up, across)
        calm = norms[np.isfinite(norms) & ~cliffs.marks]
        mean = float(calm.mean()) if len(calm) else 0.0
    return mean if math.isfinite(mean) else 0.0


def learning_rate(x: Point, y: Point, slope: float) -> float:
    """With which a step at the mean slope goes a fiftieth of the plane's width."""
    width = math.sqrt(float((x[-1] - x[0]) * (y[-1] - y[0])))
    return _STEP * width / slope if slope > 0 else 1.0


def uphill(around: Surroundings, x: Point, y: Point, brink: Brink, slope: float) -> Point:
    """A place to start from that descends to the cliff: a tenth of the plane's width above it, where it is not flat."""
    place, low, high = np.array(brink.place), np.array([x[0], y[0]]), np.array([x[-1], y[-1]])
    seen = np.array(brink.gradient) * (high - low)  # as the eye sees it, the plane being a square
    seen = seen / math.hypot(*seen) if np.isfinite(seen).all() and seen.any() else np.zeros(2)
    distance = _UPHILL
    while distance > _UPHILL / 2**6:
        start = np.clip(place + distance * (high - low) * seen, low, high)
        value, gradient = around.gradient(start)
        if math.isfinite(value) and value > brink.loss and math.hypot(*gradient) >= _MOVING * slope:
            return start
        distance /= 2
    return place


def descend(
    around: Surroundings, start: Point, steps: int, rate: float, max_norm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Go down the gradient of the two coordinates, rescaled to a norm of at most ``max_norm``.

    Returns:
        [n, 2] the places, the first being the start, and [n] the losses there; n = steps + 1, or less where the loss or
        its gradient stopped being finite.
    """
    places, losses = [start], []
    for _ in range(steps):
        value, gradient = around.gradient(places[-1])
        losses.append(value)
        norm = math.hypot(*gradient)
        if not (math.isfinite(value) and math.isfinite(norm)):
            break
        places.append(places[-1] - rate * min(1.0, max_norm / norm if norm > 0 else 1.0) * gradient)
    else:
        losses.append(around.loss(places[-1]))
    return np.array(places), np.array(losses)


def _change(first: float, second: float) -> float:
    change = abs(second - first)
    return change if math.isfinite(change) else math.inf if math.isfinite(first) or math.isfinite(second) else 0.0
