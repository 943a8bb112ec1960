"""What was measured at a box of a drawing: a bar for each unit, their mean, and how strong the gradient is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from recollect.graph.drawing import symbols
from recollect.graph.drawing.blocks import Block

# Room below a box: for the bars, for a line of text.
_BARS, _TEXT, _MARGIN = 14.0, 13.0, 5.0
_MOST_BARS = 32


@dataclass(frozen=True)
class Reading:
    """A value at one step of one row.

    Attributes:
        values: one for each unit.
        gradient: the norm of dL/d of it over the units; None where nobody asks.
    """

    values: Sequence[float]
    gradient: float | None = None

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / max(len(self.values), 1)


def room(block: Block) -> float:
    """How much room a box needs below it for what was measured."""
    if block.kind in ("input", "number"):
        return 0.0
    with_gradient = block.kind in ("previous", "state", "gate")
    return _MARGIN + _BARS + _TEXT * (2 if with_gradient else 1)


def draw(reading: Reading, block: Block, x: float, y: float, width: float, colour: str) -> str:
    """The reading of a block below ``y``: in its middle ``x``, or beside it where a state enters or leaves."""
    anchor = {"previous": "end", "state": "start"}.get(block.kind, "middle")
    edge = x + {"end": width / 2, "start": -width / 2}.get(anchor, 0.0)
    width = max(36.0, min(width, 64.0))
    left, top = edge - {"end": width, "start": 0.0, "middle": width / 2}[anchor], y + _MARGIN
    # What a gate lets through is compared with all and nothing, anything else with its own largest.
    parts = [_bars(reading.values, left, top, width, colour, 1.0 if block.kind == "gate" else 0.0)]
    lines = [written(reading.mean)]
    if reading.gradient is not None:
        lines.append(f"‖∂‖ {written(reading.gradient)}")
    for place, line in enumerate(lines):
        at = top + _BARS + 11 + _TEXT * place
        parts.append(symbols.svg(symbols.words(line), edge, at, anchor=anchor, style=f"reading {block.kind}"))
    return "".join(parts)


def written(value: float) -> str:
    """A number in few letters."""
    text = f"{value:.2g}" if math.isfinite(value) else str(value)
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def _bars(values: Sequence[float], left: float, top: float, width: float, colour: str, least: float) -> str:
    """Bars from the line of 0; the longest stands for ``least`` at least."""
    shown = binned([value if math.isfinite(value) else 0.0 for value in values], _MOST_BARS)
    largest = max((abs(value) for value in shown), default=0.0)
    scale = max(largest, least) or 1.0
    below = min(shown, default=0.0) < 0
    zero = top + (_BARS / 2 if below else _BARS)
    unit = (_BARS / 2 if below else _BARS) / scale
    each = width / max(len(shown), 1)
    bars = "".join(
        f"M{left + each * place:.1f} {zero:g}v{-value * unit:.1f}h{each * 0.8:.1f}V{zero:g}z"
        for place, value in enumerate(shown)
    )
    base = f'<path class="zero" d="M{left:g} {zero:g}h{width:g}"/>'
    return f'{base}<path class="bars {colour}" d="{bars}"/>'


def binned(values: Sequence[float], most: int) -> list[float]:
    """At most so many numbers: means of neighbours, of groups that differ by one at most."""
    count = min(len(values), most)
    edges = [len(values) * place // count for place in range(count + 1)] if count else []
    return [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
