"""What went wrong while it was trained, as a `Probe` saw it: the limit of clipping, and numbers that are none."""

from __future__ import annotations

import math

import numpy as np

from recollect.diagnosis.findings.case import Case
from recollect.diagnosis.findings.data import keep_rows
from recollect.diagnosis.findings.finding import Finding

# Too few steps tell nothing about a distribution.
_FEWEST_STEPS = 20
# Too low: so many of the steps were clipped. Too high: none was, although the largest norm is so many times the median.
_CLIPPED, _SPIKE = 0.5, 10.0
# The limit to recommend: this quantile of the norms, so that one step in ten is clipped.
_RECOMMENDED = 0.9


def clip_threshold(case: Case) -> list[Finding]:
    """``"clip_threshold_too_low"``: more than half of the steps were clipped, so that the limit, not the gradient, sets
    how far a step goes. ``"clip_threshold_too_high"``: no step was, although the largest norm is ten times the median.
    """
    if case.training is None:
        return []
    norms, scales = np.array(case.training.norms), np.array(case.training.scales)
    finite = np.isfinite(norms) & (scales > 0)
    norms, scales = norms[finite], scales[finite]
    if len(norms) < _FEWEST_STEPS:
        return []
    clipped = scales < 1
    limit = _two_digits(float(np.quantile(norms, _RECOMMENDED)))
    remedy = (
        "loss.backward()\n"
        f"recollect.clip_by_global_norm(model.parameters(), max_norm={limit:g})  # one step in ten is above\n"
        "optimizer.step()"
    )
    if clipped.mean() > _CLIPPED:
        used = float(np.median(norms[clipped] * scales[clipped]))
        evidence = (
            f"{clipped.mean():.0%} of {len(norms)} steps were clipped to {used:.3g}, where the median norm is "
            f"{np.median(norms):.3g}: the limit, not the gradient, sets how far a step goes"
        )
        return [Finding("clip_threshold_too_low", "warning", evidence, remedy, "step")]
    median, largest = float(np.median(norms)), float(norms.max())
    if not clipped.any() and largest > _SPIKE * median:
        evidence = (
            f"none of {len(norms)} steps was clipped, but the largest gradient norm, {largest:.3g}, is "
            f"{largest / median if median else math.inf:.3g} times the median, {median:.3g}"
        )
        return [Finding("clip_threshold_too_high", "warning", evidence, remedy, "step")]
    return []


def _two_digits(number: float) -> float:
    return float(f"{number:.2g}")


def not_finite(case: Case) -> list[Finding]:
    """``"not_finite"``: in training the loss or a gradient was not finite; where it began."""
    first = None if case.training is None else case.training.non_finite
    if first is None:
        return []
    culprit = first.culprit
    what = "the loss or its gradient was not finite" if culprit is None else str(culprit)
    evidence = f"at epoch {first.epoch + 1}, step {first.step + 1}, {what}"
    if culprit is not None and culprit.what.startswith(("the input x", "the target y")):
        flat = "flatten(1).all(1)"
        bad_x = f"torch.isfinite({'x' if case.calls[0].layer.batch_first else 'x.transpose(0, 1)'}).{flat}"
        remedy = keep_rows(
            case.calls[0], f"{bad_x} & torch.isfinite(y.flatten(1) if y.dim() > 1 else y[:, None]).all(1)"
        )
        return [Finding("not_finite", "error", evidence, remedy, "data")]
    remedy = (
        "for group in optimizer.param_groups:\n"
        '    group["lr"] = group["lr"] / 10  # begin again from finite weights\n'
        "loss.backward()\n"
        "recollect.clip_by_global_norm(model.parameters(), max_norm=1.0)\n"
        "optimizer.step()"
    )
    return [Finding("not_finite", "error", evidence, remedy, "step")]
