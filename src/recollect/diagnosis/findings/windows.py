"""Truncated backpropagation that goes back less far than the network's memory."""

from __future__ import annotations

from recollect.diagnosis.findings.case import Case
from recollect.diagnosis.findings.finding import Finding


def window_too_short(case: Case) -> list[Finding]:
    """``"window_too_short"``: training goes back fewer steps than an input changes the output."""
    if case.window is None or case.window >= case.memory:
        return []
    at_least = "at least " if case.memory >= len(case.curve) else ""
    evidence = (
        f"training goes back {case.window} steps, but what came up to {at_least}{case.memory} steps before still "
        "changes the output: the network is not taught what to do with it"
    )
    # Overlapping windows: each gradient then goes back at least half of the window.
    remedy = (
        f"for x_chunk, y_chunk in recollect.tbptt(x, y, window={2 * case.memory}, stride={case.memory}):\n"
        "    ...  # and the step as before; see the docstring of recollect.tbptt"
    )
    return [Finding("window_too_short", "warning", evidence, remedy, "loop")]
