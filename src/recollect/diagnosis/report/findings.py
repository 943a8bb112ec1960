"""What was found, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recollect.diagnosis.report import words
from recollect.diagnosis.report.page import badge, escape

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis
    from recollect.diagnosis.findings import Finding

# Where a remedy belongs.
_WHEN = {
    "model": "Once, before training:",
    "data": "Where the data are prepared:",
    "step": "In place of <code>loss.backward(); optimizer.step()</code>:",
    "loop": "As the training loop:",
    "never": "What helps:",
}


def section(diagnosis: Diagnosis) -> str:
    return "".join(
        f'<section class="finding {finding.severity}"><h3>{escape(finding.title)} {_badge(finding)}</h3>'
        f"<p>{_evidence(finding)}</p>{_remedy(finding)}</section>"
        for finding in diagnosis.findings
    )


def header(diagnosis: Diagnosis) -> str:
    """The verdict, the worst that was found, and what to do about it."""
    first, worst = diagnosis.findings[0], diagnosis.worst
    beside = ""
    if worst is not first:
        beside = f"<p class=also><b>{escape(worst.title)}</b> {_badge(worst)}<br>{_evidence(worst)}</p>\n"
    others = len(diagnosis.findings) - (1 if worst is first else 2)
    below = f'<p><a href="#findings">{words.count(others, "more finding")} below</a></p>\n' if others else ""
    return f"""<header class="{worst.severity}">
<h1>{escape(words.verdict(diagnosis))} {_badge(first)}</h1>
<p class=evidence>{_evidence(first)}</p>
{beside}{_remedy(worst)}{below}</header>
"""


def _badge(finding: Finding) -> str:
    return badge("nothing wrong" if finding.kind == "healthy" else finding.severity, finding.severity)


def _evidence(finding: Finding) -> str:
    return escape(words.sentence(finding.evidence))


def _remedy(finding: Finding) -> str:
    if not finding.remedy:
        return ""
    return f"<p class=when>{_WHEN[finding.when]}</p><pre><code>{escape(finding.remedy)}</code></pre>"
