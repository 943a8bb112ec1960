"""A diagnosis as one HTML page: what it shows, and in what order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recollect.diagnosis.report import findings, gradient, numbers, words
from recollect.diagnosis.report.page import escape, page

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

SECTIONS = (gradient.section, findings.section, numbers.section)


def to_html(diagnosis: Diagnosis) -> str:
    """The report: the verdict, the curves, the numbers, and what to do."""
    notes = "".join(f"<p class=note>Note: {escape(note)}.</p>" for note in diagnosis.notes)
    curve, steps = diagnosis.grad_norm_by_lag, len(diagnosis.grad_norm_by_lag)
    facts = {
        "Gradient horizon": words.horizon(diagnosis.gradient_horizon, steps),
        "Growth per step": f"{diagnosis.growth_per_step:.4g}",
        "At lag 0": f"{curve[0]:.3g}",
        f"At lag {steps - 1}": f"{curve[-1]:.3g}",
    }
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    finding = diagnosis.findings[0]
    return page(
        f"{words.verdict(diagnosis)}: {diagnosis.curve}",
        f"""<header class="{finding.severity}">
<h1>{escape(words.verdict(diagnosis))}</h1>
<p>{escape(finding.evidence)}.</p>
</header>
<p>Judged by <code>{escape(diagnosis.curve)}</code> over {steps} steps; L = {diagnosis.loss:.6g}.</p>
{notes}<dl>{listed}</dl>
{"".join(section(diagnosis) for section in SECTIONS)}""",
    )
