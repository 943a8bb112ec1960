"""What every chart has around it: scales, ticks, names."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from recollect.diagnosis.flow import Curve

# A picture is so wide, in units of its own; the page stretches it and keeps the letters readable.
WIDTH = 420
LEFT, RIGHT = 48, 408
_BELOW = 40  # for numbers and a name under the chart
_MOST_TICKS = 6
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Tick = tuple[float, str]


@dataclass(frozen=True)
class Axis:
    """Where numbers lie along one side of a chart.

    Attributes:
        low, high: the numbers at its ends; their powers of ten where it is logarithmic.
        ticks: numbers (or powers) to write beside it.
        log: it is logarithmic.
        name: what it measures.
        start, end: where its ends are.
    """

    low: float
    high: float
    ticks: list[Tick] = field(default_factory=list)
    log: bool = False
    name: str = ""
    start: float = LEFT
    end: float = RIGHT

    def __call__(self, value: float) -> float:
        """The place of a number, or of a power of ten where the axis is logarithmic."""
        return self.start + (self.end - self.start) * ((value - self.low) / ((self.high - self.low) or 1.0))

    def numbers(self, values: Curve) -> Curve:
        """What `__call__` takes for these values: NaN for what has no place."""
        shown = np.full(len(values), np.nan)
        usable = np.isfinite(values) & (values > 0) if self.log else np.isfinite(values)
        shown[usable] = np.log10(values[usable]) if self.log else values[usable]
        return shown

    def between(self, start: float, end: float) -> Axis:
        return Axis(self.low, self.high, self.ticks, self.log, self.name, start, end)


def steps(last: int, name: str = "", *, cells: bool = False) -> Axis:
    """An axis of whole numbers from 0 on; with ``cells``, each has room to both sides, as in a heat map."""
    ticks = [(float(n), str(round(n))) for n in _multiples(0, last, 5) if n == round(n)]
    return Axis(-0.5, last + 0.5, ticks, name=name) if cells else Axis(0, max(last, 1), ticks, name=name)


def spaced(places: Curve, name: str = "") -> Axis:
    """An axis of steps that are evenly spaced, each with room to both sides, as in a heat map."""
    half = (places[-1] - places[0]) / (len(places) - 1) / 2 if len(places) > 1 else 0.5
    ticks = [(n, str(round(n))) for n in _multiples(float(places[0]), float(places[-1]), 5) if n == round(n)]
    return Axis(float(places[0]) - half, float(places[-1]) + half, ticks, name=name)


def linear(values: Iterable[Curve], name: str = "", most: int = 4) -> Axis:
    """An axis that has room for all finite values and 0, unless these lie far from it."""
    known = np.concatenate([each[np.isfinite(each)] for each in values])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if 0 < low < high / 2 or low == high > 0:
        low = 0.0
    if low / 2 < high < 0 or low == high < 0:
        high = 0.0
    if low == high:
        high = 1.0
    ticks = [(n, _short(n)) for n in _multiples(low, high, most)]
    return Axis(low, high, ticks, name=name)


def decades(values: Iterable[Curve], name: str = "") -> Axis:
    """A logarithmic axis over whole powers of ten, at least two of them, so that what is flat looks flat."""
    known = np.concatenate([np.log10(each[np.isfinite(each) & (each > 0)]) for each in values])
    low, high = (math.floor(known.min()), math.ceil(known.max())) if len(known) else (0, 0)
    low = min(low, high - 2)
    every = math.ceil((high - low) / _MOST_TICKS)
    return Axis(low, high, [(n, power_of_ten(n)) for n in range(low, high + 1, every)], log=True, name=name)


def power_of_ten(exponent: int) -> str:
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def svg(height: float, label: str, parts: Iterable[str]) -> str:
    """A picture.

    Args:
        height: in units of which it is `WIDTH` wide.
        label: what it says, for who cannot see it.
    """
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{html.escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def beside(up: Axis, *, lines: bool = True) -> str:
    """The numbers to the left of a chart, with lines across it."""
    parts = []
    for number, text in up.ticks:
        at = up(number)
        if lines:
            parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at:.1f}" dy=".33em" text-anchor="end">{text}</text>')
    return "".join(parts)


def below(across: Axis, bottom: float) -> str:
    """The numbers under a chart and what they count."""
    parts = [
        f'<text class="tick" x="{across(number):.1f}" y="{bottom:g}" dy="1.4em" text-anchor="middle">{text}</text>'
        for number, text in across.ticks
    ]
    middle = (LEFT + RIGHT) / 2
    name = html.escape(across.name)
    parts.append(f'<text class="axis" x="{middle:g}" y="{bottom:g}" dy="2.8em" text-anchor="middle">{name}</text>')
    return "".join(parts)


def upright(across: Axis, top: float, bottom: float) -> str:
    """Lines up from the numbers below, so that charts one above the other can be compared."""
    return "".join(f'<path class="grid" d="M{across(number):.1f} {top:g}V{bottom:g}"/>' for number, _ in across.ticks)


def height(bottom: float, *, named: bool = True) -> float:
    """How high a picture is whose chart ends there."""
    return bottom + (_BELOW if named else 4)


def _short(number: float) -> str:
    """In few characters, for there is little room: 2000, 20k, 1e6."""
    if 1e4 <= abs(number) < 1e6:
        return f"{number / 1e3:.3g}k"
    return f"{number:.4g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _multiples(low: float, high: float, most: int) -> list[float]:
    """The multiples between two numbers of 1, 2 or 5 times a power of ten, about ``most`` of them."""
    rough = (high - low) / most
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9)
    return [each * apart for each in range(first, last + 1)]
