"""The frame of a page: what every report shares, whatever it says."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files


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
