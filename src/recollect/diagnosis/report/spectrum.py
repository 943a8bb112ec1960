"""What the steps do to a small change of the state, in every direction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from recollect.diagnosis.charts import axes
from recollect.diagnosis.charts.dots import dots
from recollect.diagnosis.charts.lines import legend, lines
from recollect.diagnosis.report.page import escape, figure, figures, how_to_read

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis
    from recollect.diagnosis.jacobians.lyapunov import LyapunovSpectrum
    from recollect.diagnosis.jacobians.spectrum import JacobianSpectrum


def section(diagnosis: Diagnosis) -> str:
    spectrum = diagnosis.spectrum
    lyapunov = diagnosis.lyapunov
    drawn = []
    if spectrum is not None:
        drawn.append(_singular_values(spectrum))
    if lyapunov is not None:
        drawn.append(_exponents(lyapunov))
    return figures(drawn)


def short(diagnosis: Diagnosis) -> str:
    """The largest Lyapunov exponent."""
    lyapunov = diagnosis.lyapunov
    return "" if lyapunov is None else f"{lyapunov.exponents[0]:.3g} per step"


def _singular_values(spectrum: JacobianSpectrum) -> str:
    values = spectrum.singular_values
    curves = {"largest": values[:, 0], "median": np.median(values, axis=1), "smallest": values[:, -1]}
    across = axes.steps(int(spectrum.lags[-1]), "lag k in steps")
    grows = f"the largest changes by {spectrum.growth_per_step:.4g} per step"
    label = f"Singular values of dh_T/dh_(T-k) of {spectrum.layer} by k, log scale; {grows}"
    places = dict.fromkeys(curves, spectrum.lags.astype(float))
    drawing = lines(curves, axes.decades(curves.values()), across, label, places=places)
    keys = legend({"largest": f"times {spectrum.growth_per_step:.4g} per step", "median": "", "smallest": ""})
    read = how_to_read(
        "How much of a small change of h, k steps before the end, is left at the end: in the direction that keeps "
        "most, in a middle one and in the one that keeps least. Gradients explode where the largest grows."
    )
    title = f"Singular values of <code>dh_T/dh_(T-k)</code> of <code>{escape(spectrum.layer)}</code>, log scale"
    return figure(title, drawing + keys + read)


def _exponents(lyapunov: LyapunovSpectrum) -> str:
    values = lyapunov.exponents
    gone = int((~np.isfinite(values)).sum())
    across = axes.Axis(
        0.5,
        len(values) + 0.5,
        axes.steps(len(values), cells=True).ticks[1:],
        name="direction, the slowest to fade first",
    )
    label = f"Lyapunov exponents of {lyapunov.layer}, {len(values)} of {lyapunov.size}; the largest is {values[0]:.3g}"
    drawing = dots(values, axes.linear([values, np.zeros(1)]), across, label, places=np.arange(1.0, len(values) + 1))
    first = float(values[0])
    if first > 0:
        meaning = "above 0, so small changes of the state grow: the network is chaotic"
    elif first == 0 or math.isinf(first):
        meaning = "so a change stays as it is" if first == 0 else "so every change is gone at once"
    else:
        meaning = f"below 0, so a change of the state fades to 1/e in {-1 / first:.3g} steps"
    keys = f"<p>The largest is {first:.3g}, {escape(meaning)}.</p>" + (
        f"<p class=note>{gone} at minus infinity are not drawn.</p>" if gone else ""
    )
    read = how_to_read(
        "By which factor e<sup>exponent</sup> a step stretches small changes of the state in the long run, a dot for "
        "each direction; the line is at 0."
    )
    return figure(f"Lyapunov exponents of <code>{escape(lyapunov.layer)}</code> per step", drawing + keys + read)
