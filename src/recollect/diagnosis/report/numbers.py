"""The numbers behind the pictures, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from recollect.diagnosis.flow import Curve
from recollect.diagnosis.report.page import table

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

# Columns of a table that shall fit on paper.
_MOST_LAGS = 7


def section(diagnosis: Diagnosis) -> str:
    horizons = {name: str(horizon) for name, horizon in diagnosis.horizons.items()}
    return (
        _curve_table("Norm of dL/ds by lag, and its horizon", diagnosis.curves, horizons)
        + _curve_table("Norm of what each lag adds to dL/dW_hh", diagnosis.weight_curves)
        + _gate_table(diagnosis)
        + table(
            "Recurrent weights W_hh: largest absolute eigenvalue (spectral radius) and singular value (norm)",
            [
                [name, f"{radius:.4g}", f"{diagnosis.spectral_norm[name]:.4g}"]
                for name, radius in diagnosis.spectral_radius.items()
            ],
            ["", "radius", "norm"],
        )
    )


def _curve_table(caption: str, curves: Mapping[str, Curve], horizons: Mapping[str, str] | None = None) -> str:
    lags = _lags(max(map(len, curves.values())))
    rows = [
        [
            name,
            *(f"{curve[lag]:.3g}" if lag < len(curve) else "" for lag in lags),
            *([horizons[name]] if horizons else []),
        ]
        for name, curve in curves.items()
    ]
    return table(caption, rows, ["", *(f"lag {lag}" for lag in lags), *(["horizon"] if horizons else [])])


def _lags(steps: int) -> list[int]:
    """Lag 0, the last one, and round ones between, closer together the smaller they are."""
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        inside = {m * 10**e for e in range(7) for m in multiples if m * 10**e < steps}
        if len(inside) + 2 <= _MOST_LAGS:
            break
    return sorted({0, steps - 1, *inside})


def _gate_table(diagnosis: Diagnosis) -> str:
    if not diagnosis.gates:
        return ""
    rows = [
        [name, seen.kind, f"{seen.openness.mean():.3g}", f"{seen.low:.1%}", f"{seen.high:.1%}"]
        for name, seen in diagnosis.gates.items()
    ]
    head = ["", "activation", "mean", "saturated low", "saturated high"]
    return table("Gates over all rows, steps and units; of a tanh the mean is that of its size", rows, head)
