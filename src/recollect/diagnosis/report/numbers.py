"""The numbers behind the pictures, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recollect.diagnosis.report.page import table

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis


def section(diagnosis: Diagnosis) -> str:
    return f"<h2>Numbers</h2>\n{_curve_table(diagnosis)}\n{_radius_table(diagnosis)}"


def _curve_table(diagnosis: Diagnosis) -> str:
    steps = max(map(len, diagnosis.curves.values()))
    lags = sorted({0, steps - 1, *(m * 10**e for e in range(7) for m in (1, 2, 5) if m * 10**e < steps)})
    rows = [
        [f"lag {lag}", *(f"{curve[lag]:.3g}" if lag < len(curve) else "" for curve in diagnosis.curves.values())]
        for lag in lags
    ]
    rows.append(["horizon", *(str(diagnosis.horizons[name]) for name in diagnosis.curves)])
    return table("Gradient by lag", rows, ["", *diagnosis.curves])


def _radius_table(diagnosis: Diagnosis) -> str:
    return table(
        "Spectral radius of W_hh: its largest absolute eigenvalue",
        [[name, f"{value:.4g}"] for name, value in diagnosis.spectral_radius.items()],
    )
