"""Single numbers, one beside the other."""

from __future__ import annotations

from recollect.diagnosis.charts import axes
from recollect.diagnosis.charts.axes import Axis
from recollect.diagnosis.flow import Curve

_TOP = 12


def dots(values: Curve, up: Axis, across: Axis, label: str, *, places: Curve, height: float = 160) -> str:
    """Draw a dot for each number, and a line at 0.

    Args:
        values: [n]; what is not finite is left out.
        up, across: the axes, upwards and to the right.
        label: what the picture says, for who cannot see it.
        places: [n] where they lie on the axis across.
        height: of the chart.
    """
    bottom = _TOP + height
    up = up.between(bottom, _TOP)
    parts = [axes.beside(up), axes.below(across, bottom)]
    if up.low <= 0 <= up.high:
        parts.append(f'<path class="level" d="M{axes.LEFT} {up(0):.1f}H{axes.RIGHT}"/>')
    parts += [
        f'<circle class="dot" cx="{across(place):.1f}" cy="{up(value):.1f}" r="3"/>'
        for place, value in zip(places, up.numbers(values), strict=True)
        if value == value
    ]
    return axes.svg(axes.height(bottom), label, parts)
