"""The gradient against lag, on a log scale."""

from __future__ import annotations

from collections.abc import Mapping

from recollect.diagnosis.charts import axes
from recollect.diagnosis.charts.lines import lines
from recollect.diagnosis.flow import Curve


def gradient_by_lag(curves: Mapping[str, Curve], horizons: Mapping[str, int], label: str) -> str:
    """Draw curves on a log scale, each with a ring and a drop line at its horizon.

    Args:
        curves: [T] each, by name; 0 and what is not finite is left out.
        horizons: of each curve; 0 or no entry for none.
        label: what the picture says, for who cannot see it.
    """
    across = axes.steps(max(map(len, curves.values())) - 1, "lag in steps")
    rings = {name: horizon - 1 for name, horizon in horizons.items()}
    return lines(curves, axes.decades(curves.values()), across, label, rings=rings)
