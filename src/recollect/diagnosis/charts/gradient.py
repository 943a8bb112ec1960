"""The gradient against lag, on a log scale."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping

import numpy as np

from recollect.diagnosis.flow import Curve

# How many line styles report.css knows: colour and dashes, so that colour alone never tells.
STYLES = 4
_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 408, 12, 208
_MOST_POINTS, _MOST_TICKS = 600, 6
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def gradient_by_lag(curves: Mapping[str, Curve], horizons: Mapping[str, int], label: str) -> str:
    """Draw curves on a log scale, each with a ring and a drop line at its horizon.

    Args:
        curves: [T] each, by name; 0 and what is not finite is left out.
        horizons: of each curve.
        label: what the picture says, for who cannot see it.
    """
    steps = max(map(len, curves.values()))
    logs = {name: _log10(curve) for name, curve in curves.items()}
    known = np.concatenate([each[np.isfinite(each)] for each in logs.values()])
    low, high = (math.floor(known.min()), math.ceil(known.max())) if len(known) else (0, 0)
    low, high = min(low, high - 2), high  # a flat curve shall look flat

    def x(lag: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * lag / max(steps - 1, 1)

    def y(log: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (log - low) / (high - low)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    every = math.ceil((high - low) / _MOST_TICKS)
    for power in range(low, high + 1, every):
        at = y(power)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_RIGHT}"/>')
        exponent = str(power).translate(_SUPERSCRIPT)
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">10{exponent}</text>')
    for lag in _round_lags(steps):
        parts.append(f'<text class="tick" x="{x(lag):.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{lag}</text>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">lag in steps</text>')
    for place, (name, values) in enumerate(logs.items()):
        style = f"s{place % STYLES}"
        for run in _runs(values):
            points = " ".join(f"{x(lag):.1f},{y(values[lag]):.1f}" for lag in run)
            parts.append(f'<polyline class="{style}" points="{points}"/>')
        last = horizons[name] - 1
        if last >= 0 and math.isfinite(values[last]):
            across, up = f"{x(last):.1f}", f"{y(values[last]):.1f}"
            parts.append(f'<path class="drop {style}" d="M{across} {up}V{_BOTTOM}"/>')
            parts.append(f'<circle class="{style}" cx="{across}" cy="{up}" r="5"/>')
    return "".join(parts) + "</svg>"


def _log10(curve: Curve) -> Curve:
    logs = np.full(len(curve), np.nan)
    usable = np.isfinite(curve) & (curve > 0)
    logs[usable] = np.log10(curve[usable])
    return logs


def _runs(values: Curve) -> Iterator[list[int]]:
    """The lags to join by lines: unbroken runs of numbers, thinned out where there are very many."""
    stride = math.ceil(len(values) / _MOST_POINTS)
    run: list[int] = []
    for lag in range(0, len(values), stride):
        if math.isfinite(values[lag]):
            run.append(lag)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _round_lags(steps: int) -> range:
    """Lags to name under the axis: 1, 2 or 5 times a power of ten apart."""
    rough = max((steps - 1) / 5, 1)
    power = 10 ** math.floor(math.log10(rough))
    apart = next(each * power for each in (1, 2, 5, 10) if each * power >= rough)
    return range(0, steps, apart)
