"""What was found, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recollect.diagnosis.report.page import escape

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis


def section(diagnosis: Diagnosis) -> str:
    findings = "".join(
        f'<section class="finding {finding.severity}"><h3>{escape(finding.title)}</h3>'
        f"<p>{escape(finding.evidence)}.</p>"
        + (f"<p>What helps:</p><pre><code>{escape(finding.remedy)}</code></pre>" if finding.remedy else "")
        + "</section>"
        for finding in diagnosis.findings
    )
    return f"<h2>Findings</h2>\n{findings}\n"
