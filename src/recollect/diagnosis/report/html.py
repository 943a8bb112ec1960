"""A diagnosis as one HTML page: what it shows, and in what order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from recollect.diagnosis.report import findings, gates, gradient, memory, numbers, spectrum, surface, training, words
from recollect.diagnosis.report.page import escape, page

if TYPE_CHECKING:
    from recollect.diagnosis.diagnosis import Diagnosis

# Each returns "" where there is nothing to show.
SECTIONS: dict[str, Callable[[Diagnosis], str]] = {
    "Gradient by lag": gradient.section,
    "Memory": memory.section,
    "Gates over time": gates.section,
    "Training": training.section,
    "Error surface": surface.section,
    "Directions of the state": spectrum.section,
    "Findings": findings.section,
    "Numbers": numbers.section,
}


def to_html(diagnosis: Diagnosis) -> str:
    """The report: the verdict and what to do, then what it rests on."""
    notes = "".join(f"<p class=note>Note: {escape(note)}.</p>" for note in diagnosis.notes)
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _facts(diagnosis))
    shown = {title: body for title, section in SECTIONS.items() if (body := section(diagnosis))}
    contents = " ".join(f'<a href="#{_id(title)}">{escape(title)}</a>' for title in shown)
    return page(
        f"{words.verdict(diagnosis)}: {diagnosis.curve}",
        f"""{findings.header(diagnosis)}
<dl class="facts">{facts}</dl>
<p class=note>Judged by <code>{escape(diagnosis.curve)}</code> over {len(diagnosis.grad_norm_by_lag)} steps.</p>
{notes}<nav>{contents}</nav>
{"".join(f'<section id="{_id(title)}"><h2>{escape(title)}</h2>{body}</section>' for title, body in shown.items())}""",
    )


def _facts(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    curve, steps = diagnosis.grad_norm_by_lag, len(diagnosis.grad_norm_by_lag)
    left = f"{curve[-1] / curve[0]:.3g} of its start" if curve[0] else f"{curve[-1]:.3g}"
    facts = [
        ("Gradient horizon", words.horizon(diagnosis.gradient_horizon, steps)),
        ("Growth per step", f"× {diagnosis.growth_per_step:.4g}"),
        (f"Gradient at lag {steps - 1}", left),
        ("Loss", f"{diagnosis.loss:.6g}"),
    ]
    if reach := memory.short(diagnosis):
        facts.insert(1, ("Memory horizon", reach))
    if clipped := training.short(diagnosis):
        facts.append(("Clipping", clipped))
    if exponent := spectrum.short(diagnosis):
        facts.append(("Largest Lyapunov exponent", exponent))
    return facts


def _id(title: str) -> str:
    return title.partition(" ")[0].lower()
