"""Names and formulas as runs of text for a drawing: letters in italics, words upright, indices below.

A browser sets the text; how wide it becomes is estimated, since nothing here knows the reader's fonts.
"""

from __future__ import annotations

import html
from typing import Literal, NamedTuple

Style = Literal["letter", "word", "index"]

# Widths in ems of a serif face at 16 px, a little generous; a wide letter takes more.
_WIDTHS: dict[Style, float] = {"letter": 8.2, "word": 7.9, "index": 5.9}
_WIDE, _NARROW = "mwMW·×÷+=−", "ijlft1.,()[]' "

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ",
    "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "upsilon": "υ", "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ",
    "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Upsilon": "Υ", "Phi": "Φ", "Psi": "Ψ",
    "Omega": "Ω",
}  # fmt: skip


class Run(NamedTuple):
    """A piece of text in one style."""

    text: str
    style: Style


Text = tuple[Run, ...]


def symbol(name: str, *below: str) -> Text:
    """``p_i`` is p with the index i; ``below`` adds indices."""
    base, *indices = name.strip("_").split("_", 1)
    base = _GREEK.get(base, base)
    below = (*(_GREEK.get(index, index) for index in indices), *below)
    runs = (Run(base, "letter" if len(base) == 1 else "word"),)
    return (*runs, Run(",".join(below), "index")) if below else runs


def state(name: str, ago: int) -> Text:
    """A state as it leaves this step, or ``ago`` steps before."""
    return symbol(name, f"t−{ago}" if ago else "t")


def share(gate: str, *, first_state: str, inp: bool, rec: bool) -> Text:
    """What a gate's pre-activation is made of, in the names of ``torch.nn``; b is one bias, or the sum of both."""
    gate = _GREEK.get(gate, gate)
    plus, runs = (Run(" + ", "word"),), ()
    if inp:
        runs = (*symbol("x", "t"), Run(" W", "letter"), Run(f"i{gate}", "index"), *plus)
    if rec:
        runs = (*runs, *state(first_state, 1), Run(" W", "letter"), Run(f"h{gate}", "index"), *plus)
    return (*runs, Run("b", "letter"), Run(gate if inp and rec else f"i{gate}" if inp else f"h{gate}", "index"))


def words(text: str) -> Text:
    """Upright text."""
    return (Run(text, "word"),)


def width(text: Text) -> float:
    """How many pixels wide a text becomes, about, at the size of the drawing's letters."""
    return sum(
        _WIDTHS[run.style] * sum(1.3 if each in _WIDE else 0.6 if each in _NARROW else 1.0 for each in run.text)
        for run in text
    )


def plain(text: Text) -> str:
    """The text without styles, indices after an underscore."""
    return "".join(f"_{run.text}" if run.style == "index" else run.text for run in text)


def svg(text: Text, x: float, y: float, *, anchor: str = "middle", style: str = "") -> str:
    """A ``<text>`` element whose baseline is ``y``."""
    parts, low = [], False
    for run in text:
        # A shift holds for all that follows, so what comes after an index is lifted back.
        shift = ' dy="4"' if run.style == "index" and not low else ' dy="-4"' if low and run.style != "index" else ""
        low = run.style == "index"
        parts.append(f'<tspan class="{run.style}"{shift}>{html.escape(run.text)}</tspan>')
    words = f' class="{style}"' if style else ""
    return f'<text{words} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{"".join(parts)}</text>'
