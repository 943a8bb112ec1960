"""Numbers over two axes, as colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recollect.diagnosis.charts import axes
from recollect.diagnosis.charts.axes import Axis
from recollect.diagnosis.charts.image import data_uri

Array = NDArray[np.float64]

# More than this no page needs: it is shown in a few hundred dots.
_MOST_ROWS, _MOST_COLUMNS = 64, 400
_SHADES = 48
_TOP = 4


def heatmap(
    values: Array,
    low: float,
    high: float,
    across: Axis,
    label: str,
    *,
    up: Axis | None = None,
    colours: str = "viridis",
    height: float = 72,
    named: bool = True,
) -> str:
    """Paint an array; where it is large, each dot is the mean of some neighbours.

    Args:
        values: [rows, columns], the first row on top.
        low, high: what the first and the last colour stand for.
        across: the axis of the columns, made with ``cells``.
        label: what the picture says, for who cannot see it.
        up: the axis of the rows, the first number at the bottom.
        colours: a colour map of matplotlib's.
        height: of the chart.
        named: write numbers and name below.
    """
    bottom = _TOP + height
    image = data_uri(shrink(values), low, high, colours, _SHADES)
    box = f'x="{axes.LEFT}" y="{_TOP}" width="{axes.RIGHT - axes.LEFT}" height="{height:g}"'
    parts = [f'<image {box} preserveAspectRatio="none" href="{image}"/><rect class="frame" {box}/>']
    if up is not None:
        parts.append(axes.beside(up.between(bottom, _TOP), lines=False))
    if named:
        parts.append(axes.below(across, bottom))
    return axes.svg(axes.height(bottom, named=named), label, parts)


def shrink(values: Array, rows: int = _MOST_ROWS, columns: int = _MOST_COLUMNS) -> Array:
    """Make an array smaller by the means of neighbours; those that are not finite do not count."""
    if values.shape[0] <= rows and values.shape[1] <= columns:
        return values
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0), known.astype(float)
    for axis, most in enumerate((rows, columns)):
        if (length := values.shape[axis]) > most:
            starts = np.arange(most) * length // most
            total, count = np.add.reduceat(total, starts, axis), np.add.reduceat(count, starts, axis)
    with np.errstate(invalid="ignore"):
        return total / count


def key(low: str, high: str, colours: str, what: str) -> str:
    """What the colours stand for: a strip of them between two words."""
    strip = data_uri(np.linspace(0.0, 1.0, 64)[None], 0.0, 1.0, colours)
    return f'<span class="strip">{low} <img src="{strip}" width="96" height="10" alt="colours of {what}"> {high}</span>'
