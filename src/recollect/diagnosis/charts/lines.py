"""Curves over steps or lags, each in a style of its own."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recollect.diagnosis.charts import axes
from recollect.diagnosis.charts.axes import Axis
from recollect.diagnosis.flow import Curve

# How many line styles report.css knows: colour and dashes, so that colour alone never tells.
STYLES = 4
_MOST_POINTS = 600
# Room for a ring, and for half of a number.
_TOP, _TOP_OF_TRACK = 12, 7


def lines(
    curves: Mapping[str, Curve],
    up: Axis,
    across: Axis,
    label: str,
    *,
    places: Mapping[str, Curve] | None = None,
    height: float = 196,
    rings: Mapping[str, int] | None = None,
    levels: Sequence[float] = (),
    marks: Sequence[int] | NDArray[np.int64] = (),
    named: bool = True,
) -> str:
    """Draw curves.

    Args:
        curves: [n] each, by name; what has no place on the axis is left out.
        up, across: the axes, upwards and to the right.
        label: what the picture says, for who cannot see it.
        places: [n] by name of a curve, where its numbers lie on the axis across; by default 0, 1, ...
        height: of the chart.
        rings: by name of a curve, the place in it of a number to ring, with a line down from it.
        levels: numbers at which a line goes all the way across.
        marks: places on the axis across to mark by a stroke at the bottom.
        named: write numbers and name below.
    """
    top = _TOP if named else _TOP_OF_TRACK
    bottom = top + height
    up = up.between(bottom, top)
    parts = [axes.beside(up)]
    if named:
        parts.append(axes.below(across, bottom))
    else:
        parts.append(axes.upright(across, top, bottom))
    parts += [f'<path class="level" d="M{axes.LEFT} {up(each):.1f}H{axes.RIGHT}"/>' for each in _shown(levels, up)]
    parts.append(_strokes(marks, across, bottom))
    for number, (name, curve) in enumerate(curves.items()):
        style, values = f"s{number % STYLES}", up.numbers(curve)
        lags = np.arange(len(values)) if places is None else places[name]
        for run in _runs(values):
            points = " ".join(f"{across(lags[each]):.1f},{up(values[each]):.1f}" for each in run)
            if len(run) == 1:  # a line of one point is invisible
                points += f" {across(lags[run[0]]) + 0.1:.1f},{up(values[run[0]]):.1f}"
            parts.append(f'<polyline class="{style}" points="{points}"/>')
        at = (rings or {}).get(name, -1)
        if at >= 0 and math.isfinite(values[at]):
            x, y = f"{across(lags[at]):.1f}", f"{up(values[at]):.1f}"
            parts.append(f'<path class="drop {style}" d="M{x} {y}V{bottom:g}"/>')
            parts.append(f'<circle class="{style}" cx="{x}" cy="{y}" r="5"/>')
    return axes.svg(axes.height(bottom, named=named), label, parts)


def legend(entries: Mapping[str, str], *, level: str = "", marks: str = "") -> str:
    """What the styles of lines stand for, as a list: ``"h": "horizon 12 of 80 steps"``.

    Args:
        entries: for each curve, in their order: its name and what to say of it, perhaps nothing.
        level: what the line across is, if there is one.
        marks: what the strokes at the bottom are, if there are any.
    """
    words = [f"{name}: {said}" if said else name for name, said in entries.items()]
    items = [
        f'<li><span class="key s{number % STYLES}"></span>{html.escape(each)}</li>' for number, each in enumerate(words)
    ]
    if level:
        items.append(f'<li><span class="key level"></span>{html.escape(level)}</li>')
    if marks:
        items.append(f'<li><span class="key strokes">|||</span>{html.escape(marks)}</li>')
    return f"<ul>{''.join(items)}</ul>"


def _shown(levels: Sequence[float], up: Axis) -> list[float]:
    return [each for each in up.numbers(np.array(levels, dtype=float)) if up.low <= each <= up.high]


def _strokes(marks: Sequence[int] | NDArray[np.int64], across: Axis, bottom: float) -> str:
    """One stroke for all marks that would lie on each other."""
    columns = sorted({round(across(float(each)), 0) for each in marks})
    return f'<path class="strokes" d="{"".join(f"M{x:g} {bottom:g}v-9" for x in columns)}"/>' if columns else ""


def _runs(values: Curve) -> Iterator[list[int]]:
    """The places to join by lines: unbroken runs of numbers. Of very many only the lowest and the highest stay in each
    group of neighbours, so that no peak is lost.
    """
    wide = math.ceil(2 * len(values) / _MOST_POINTS) if len(values) > _MOST_POINTS else 1
    known = np.isfinite(values)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        run: list[int] = []
        for first in range(start, end, wide):
            group = values[first : min(first + wide, end)]
            run += sorted({first + int(group.argmin()), first + int(group.argmax())})
        yield sorted({start, *run, end - 1})
