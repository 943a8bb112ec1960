"""The frame of a page, and its parts: what every report shares, whatever it says."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files

# A shape for each severity, so that colour alone never tells.
_SHAPES = {
    "error": "M4 1h6l3 3v6l-3 3H4l-3-3V4zM5 5l4 4M9 5l-4 4",
    "warning": "M7 1.5L13 12.5H1zM7 5.5v3.2M7 10.2v.6",
    "info": "M7 1a6 6 0 1 0 .01 0zM4.2 7.2l2 2 3.6-4",
}


def escape(text: str) -> str:
    return html.escape(text)


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML document that needs no other file and lets nothing in; ``style`` adds to its style sheet."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(title)}</title>
<style>
{files("recollect.diagnosis.report").joinpath("report.css").read_text(encoding="utf-8")}{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def badge(said: str, severity: str) -> str:
    """A severity as words, a shape and a colour."""
    return (
        f'<span class="badge {severity}"><svg viewBox="0 0 14 14" aria-hidden="true"><path d="{_SHAPES[severity]}"/>'
        f"</svg>{escape(said)}</span>"
    )


def figure(caption: str, drawing: str, *, wide: bool = False) -> str:
    """A picture with what it shows above it, and perhaps how to read it below; both are HTML."""
    return f"<figure{' class=wide-figure' if wide else ''}><figcaption>{caption}</figcaption>{drawing}</figure>"


def figures(drawn: Sequence[str]) -> str:
    """Pictures side by side where there is room."""
    return f'<div class="figures">{"".join(drawn)}</div>' if drawn else ""


def how_to_read(text: str) -> str:
    """A sentence or two, as HTML."""
    return f'<p class="read"><b>How to read this.</b> {text}</p>'


def table(caption: str, rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table whose first column names the rows.

    Args:
        caption: above it.
        rows: cells as text.
        head: what the columns are; an empty cell names nothing.
    """
    titles = "".join(f"<th scope=col>{escape(cell)}</th>" if cell else "<td></td>" for cell in head)
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        + (f"<thead><tr>{titles}</tr></thead>" if titles else "")
        + f"<tbody>{body}</tbody></table></div>"
    )
