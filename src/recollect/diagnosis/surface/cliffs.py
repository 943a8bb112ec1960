"""Cliffs of a loss over a plane: where it changes abruptly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# A cliff is at least so steep: this many ranges of the loss in the width of the plane, which is a fifth of the range in
# one step of the default grid of 41 points. (With half as much, the smooth sides of a bowl with a flat bottom count.)
RANGES = 8.0
# It is also so many times as steep as the median, unless it is twice as steep as it must be: where a whole surface is
# rugged, as that of a chaotic network, its cliffs are what is usual.
TYPICAL, SURELY = 10.0, 2 * RANGES
# The range is that of the losses without so many percent at either end.
_ENDS = 1.0

Grid = NDArray[np.float64]


class Cliffs(NamedTuple):
    """What `find` found.

    Attributes:
        marks: bool [n_y, n_x], the points that are on a cliff.
        median: the median slope.
        height: the largest change from one point to the next on a cliff, inf where the loss stops being finite; 0 if
            there is no cliff.
        slope: that change over the share of the plane's width in which it happens.
        between: the two points (row, column) of it, None if there is no cliff.
    """

    marks: NDArray[np.bool_]
    median: float
    height: float
    slope: float
    between: tuple[tuple[int, int], tuple[int, int]] | None


def spread(loss: Grid) -> tuple[float, float]:
    """The losses between which all but 2 % of the finite ones lie."""
    low, high = np.percentile(loss[np.isfinite(loss)], [_ENDS, 100 - _ENDS])
    return float(low), float(high)


def find(loss: Grid) -> Cliffs:
    """Mark the points of a grid that are on a cliff.

    The slope between two points side by side is the change of the loss over the share of the plane's width that lies
    between them. They are on a cliff where it is at least 8 times the range of losses and at least 10 times the median
    slope; or at least 16 times the range, whatever the median; or where one of them is finite and the other is not:
    then that one is marked which is finite. The loss is taken as it is, not its logarithm, as gradient descent does.

    Nothing here depends on the scale of the loss or of the axes; and as slopes are compared, not steps, a finer grid
    marks the same places, except that it also resolves lower walls.

    Args:
        loss: [n_y, n_x], with at least one finite value.
    """
    finite = np.isfinite(loss)
    slopes = [_slopes(loss, axis) for axis in (0, 1)]
    known = np.concatenate([each[np.isfinite(each)] for each in slopes])
    low, high = spread(loss)
    median = float(np.median(known)) if len(known) else 0.0
    least = max(RANGES * (high - low), min(TYPICAL * median, SURELY * (high - low)))
    marks = np.zeros(loss.shape, dtype=bool)
    steepest = []
    for axis, each in enumerate(slopes):
        steep = (each >= least) & (each > 0)
        along = np.moveaxis(marks, axis, 0)  # a view
        along[:-1] |= np.moveaxis(steep, axis, 0)
        along[1:] |= np.moveaxis(steep, axis, 0)
        # A wall between numbers says more than the end of all numbers.
        for usable in (steep & np.isfinite(each), steep):
            if usable.any():
                row, column = map(int, np.unravel_index(np.where(usable, each, 0).argmax(), each.shape))
                slope = float(each[row, column])
                steepest.append((np.isfinite(slope), slope, ((row, column), (row + 1 - axis, column + axis))))
                break
    if not steepest:
        return Cliffs(marks, median, 0.0, 0.0, None)
    whole, slope, between = max(steepest)
    height = abs(float(loss[between[1]] - loss[between[0]])) if whole else np.inf
    return Cliffs(marks & finite, median, height, slope, between)


def _slopes(loss: Grid, axis: int) -> Grid:
    """[n - 1 along the axis]: inf where one of the two is finite, NaN where none is."""
    first, second = (np.take(loss, range(start, loss.shape[axis] - 1 + start), axis) for start in (0, 1))
    with np.errstate(invalid="ignore", over="ignore"):
        slopes = np.abs(second - first) * (loss.shape[axis] - 1)
    finite = np.isfinite(first), np.isfinite(second)
    slopes[finite[0] != finite[1]] = np.inf
    slopes[~finite[0] & ~finite[1]] = np.nan
    return slopes
