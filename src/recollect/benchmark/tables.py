"""What was measured, as tables: for the terminal, and as Markdown for the README.

``python -m recollect.benchmark.tables FILE.json`` prints the Markdown of a file of results.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from recollect.benchmark.results import Results, Row, geometric_mean, groups, read
from recollect.benchmark.subject import Shape

UNDECIDED = "~"
LEGEND = (
    f"{UNDECIDED} the middle half of the pairs holds 1: the noise is wider than the difference, "
    "so this run does not show which is faster."
)
TARGET = 1.15  # a cell's time per multiply-add over our LSTM's shall be below
# Characters: the names and the mean, and one figure.
_NAMES, _FIGURE = 44, 9
COSTS = {
    "cells": f"other cells: time per multiply-add over our LSTM's (target: below {TARGET})",
    "lengths": "unequal lengths: time per valid step over dense time; packed: torch.nn's / ours",
    "options": "what an option costs: time over our plain LSTM's",
}


def terminal(found: Results, width: int = 80) -> list[Table | str]:
    """Ratios against others, our times, then what our own features cost, and what was not measured.

    Args:
        width: of the terminal in characters; a table with more shapes than it has room for goes on below.
    """
    parts: list[Table | str] = []
    speed = [row for row in found.rows if row.section == "speed"]
    if speed:
        parts += [*_ratios(speed, width), *_times(speed, width)]
    for section, title in COSTS.items():
        rows = [row for row in found.rows if row.section == section]
        parts += [_long(rows, title)] if rows else []
    if any(row.undecided for row in found.rows):
        parts.append(LEGEND)
    parts += [f"refused: {row.title} {row.mode} {tuple(row.shape)}: {row.refused}" for row in found.rows if row.refused]
    parts += [f"skipped: {title}: {why}" for title, why in found.skipped.items()]
    parts += [f"no time for: {name}" for name in found.left_out]
    return parts


def markdown(found: Results) -> str:
    """The ratios against others, for the README."""
    rows = [row for row in found.rows if row.section == "speed"]
    shapes = shapes_of(rows)
    lines = [
        f"| (B, I, H, T) | | {' | '.join(map(str, map(tuple, shapes)))} | geometric mean |",
        f"|---|---|{'--:|' * (len(shapes) + 1)}",
    ]
    for title, mode, own in groups(rows):
        lines.append(f"| {title} | {mode} | {' | '.join(_cells(own, shapes, _ratio))} | **{_mean(own)}** |")
    if any(row.undecided for row in rows):
        lines += ["", LEGEND]
    return "\n".join(lines)


def _ratios(rows: list[Row], width: int) -> Iterator[Table]:
    pages = _pages(shapes_of(rows), width)
    for page, shapes in enumerate(pages):
        last = page == len(pages) - 1
        headings = [*shapes, "mean"] if last else shapes
        table = _wide("peer's time / ours, median of pairs: above 1 ours is faster", headings)
        for title, mode, own in groups(rows):
            table.add_row(title, mode[:5], *_cells(own, shapes, _ratio), *([_mean(own)] if last else []))
        yield table


def _times(rows: list[Row], width: int) -> Iterator[Table]:
    ours: dict[tuple[str, str], list[Row]] = {}
    for title, mode, own in groups(rows):
        ours.setdefault((title.partition(" vs ")[0], mode), own)  # the same layer stands beside several peers
    for shapes in _pages(shapes_of(rows), width):
        table = _wide("ours: µs per step, share of the FMA peak", shapes)
        for (name, mode), own in ours.items():
            table.add_row(name, mode[:5], *_cells(own, shapes, _time))
        yield table


def _pages(shapes: list[Shape], width: int) -> list[list[Shape]]:
    room = max(1, (width - _NAMES) // _FIGURE)
    return [shapes[start : start + room] for start in range(0, len(shapes), room)]


def _wide(title: str, headings: Sequence[Shape | str]) -> Table:
    table = _table(title)
    table.add_column("batch B\ninputs I\nhidden H\nsteps T", no_wrap=True)
    table.add_column("", min_width=5)
    for each in headings:
        table.add_column(each if isinstance(each, str) else "\n".join(map(str, each)), justify="right", no_wrap=True)
    return table


def _long(rows: list[Row], title: str) -> Table:
    table = _table(title)
    for name in ("", "", "B,I,H,T"):
        table.add_column(name, no_wrap=True)
    for name in ("ratio", "middle half", "ours", "other"):
        table.add_column(name, justify="right")
    shapes = shapes_of(rows)
    for row in (row for _, _, own in groups(rows) for row in sorted(own, key=lambda row: shapes.index(row.shape))):
        start = (row.title.partition(" over ")[0], row.mode[:5], ",".join(map(str, row.shape)))
        if row.refused:
            table.add_row(*start, "refused")
        else:
            times = (_seconds(row.seconds), _seconds(row.peer_seconds))
            table.add_row(*start, _ratio(row), f"{row.low:.2f}–{row.high:.2f}", *times)
    table.caption = f"times per {rows[0].unit}"
    if any(row.section == "cells" for row in rows):
        table.caption += "; at small shapes a call's own cost counts most, which fewer gates do not lessen"
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left",
        show_edge=False,
    )  # fmt: skip


def shapes_of(rows: Sequence[Row]) -> list[Shape]:
    """All shapes, the least arithmetic first."""
    found = {row.shape for row in rows}
    return sorted(found, key=lambda s: (s.batch * s.hidden * (s.inputs + s.hidden) * s.steps, s))


def _cells(rows: Sequence[Row], shapes: Sequence[Shape], show) -> list[str]:
    by_shape = {row.shape: row for row in rows}
    return [show(by_shape[shape]) if shape in by_shape else "" for shape in shapes]


def _ratio(row: Row) -> str:
    return "refused" if row.refused else f"{UNDECIDED if row.undecided else ''}{row.ratio:.2f}×"


def _time(row: Row) -> str:
    return "-" if row.refused else f"{row.seconds * 1e6:.3g} {row.percent_of_peak:.0f}%"


def _mean(rows: Sequence[Row]) -> str:
    mean = geometric_mean(rows)
    return "-" if mean is None else f"{mean:.2f}×"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-12:.3g} ps"


if __name__ == "__main__":
    print(markdown(read(Path(sys.argv[1]))))
