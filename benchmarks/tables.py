"""What was measured, as tables: for the terminal, and as Markdown for the README.

``python -m benchmarks.tables FILE.json`` prints the Markdown of a results file.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

Row = dict[str, Any]


def _lines(rows: list[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Subject, mode and their rows, one per shape."""
    for subject in dict.fromkeys(row["subject"] for row in rows):
        for mode in ("inference", "training"):
            yield subject, mode, [row for row in rows if (row["subject"], row["mode"]) == (subject, mode)]


def _shapes(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(",".join(map(str, row["shape"])) for row in rows))


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f}×" if "ratio" in row else "refused"


def _mean(rows: list[Row]) -> str:
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    return f"{statistics.geometric_mean(ratios):.2f}×" if len(ratios) == len(rows) else "-"


def terminal(rows: list[Row]) -> list[Table | str]:
    """Ratios first, then our times."""
    parts: list[Table | str] = []
    for title, show, last in (
        ("peer's time / ours, median of pairs", _ratio, "mean"),
        ("ours: µs per step, share of the FMA peak", _time, None),
    ):
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
        table.add_column("batch B\ninputs I\nhidden H", no_wrap=True)
        table.add_column("", min_width=5)
        for heading in (*_shapes(rows), *([last] if last else [])):
            table.add_column(heading.replace(",", "\n"), justify="right", no_wrap=True)
        for subject, mode, own in _lines(rows):
            table.add_row(subject, mode[:5], *map(show, own), *([_mean(own)] if last else []))
        parts.append(table)
    parts += [
        f"refused: {row['subject']} {tuple(row['shape'])} {row['mode']}: {row['refused']}"
        for row in rows
        if "refused" in row
    ]
    return parts


def _time(row: Row) -> str:
    return f"{row['us_per_step']:.4g} {row['percent_of_peak']:.0f}%" if "ratio" in row else "-"


def markdown(rows: list[Row]) -> str:
    """The ratios, for the README."""
    shapes = [f"({shape.replace(',', ', ')})" for shape in _shapes(rows)]
    lines = [f"| (B, I, H) | | {' | '.join(shapes)} | geometric mean |", f"|---|---|{'--:|' * (len(shapes) + 1)}"]
    for subject, mode, own in _lines(rows):
        lines.append(f"| {subject} | {mode} | {' | '.join(map(_ratio, own))} | **{_mean(own)}** |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["rows"]))
