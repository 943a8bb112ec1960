"""What was measured, as tables: for the terminal, and as Markdown for the README.

``python -m recollect.benchmark.tables FILE.json`` prints the Markdown of a file of results.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
COSTS = {
    "cells": f"other cells, training: time per multiply-add over our LSTM's (target: below {TARGET})",
    "lengths": "unequal lengths: vs is the peer's time / ours; over is time per valid step / dense time per step",
    "options": "what an option costs: time over the plain LSTM's",
}


def terminal(found: Results) -> list[Table | str]:
    """Ratios against others, our times, then what our own features cost, and what was not measured."""
    parts: list[Table | str] = []
    speed = [row for row in found.rows if row.section == "speed"]
    if speed:
        parts += [_ratios(speed), _times(speed)]
    for section, title in COSTS.items():
        rows = [row for row in found.rows if row.section == section]
        parts += [_long(rows, title)] if rows else []
    if any(row.undecided for row in found.rows):
        parts.append(LEGEND)
    parts += [f"refused: {row.title} {row.mode} {row.shape}: {row.refused}" for row in found.rows if row.refused]
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


def _ratios(rows: list[Row]) -> Table:
    shapes = shapes_of(rows)
    table = _wide("peer's time / ours, median of pairs: above 1 ours is faster", [*shapes, "mean"])
    for title, mode, own in groups(rows):
        table.add_row(title, mode[:5], *_cells(own, shapes, _ratio), _mean(own))
    return table


def _times(rows: list[Row]) -> Table:
    shapes = shapes_of(rows)
    table = _wide("ours: µs per step, share of the FMA peak", shapes)
    seen = set()
    for title, mode, own in groups(rows):
        ours = (title.partition(" vs ")[0], mode)  # the same layer stands beside several peers
        if ours not in seen:
            table.add_row(ours[0], mode[:5], *_cells(own, shapes, _time))
        seen.add(ours)
    return table


def _wide(title: str, headings: Sequence[Shape | str]) -> Table:
    table = _table(title)
    table.add_column("batch B\ninputs I\nhidden H\nsteps T", no_wrap=True)
    table.add_column("", min_width=5)
    for each in headings:
        table.add_column(each if isinstance(each, str) else "\n".join(map(str, each)), justify="right", no_wrap=True)
    return table


def _long(rows: list[Row], title: str) -> Table:
    table = _table(title)
    units = {row.unit for row in rows}
    for name in ("", "", "(B, I, H, T)"):
        table.add_column(name, no_wrap=True)
    for name in ("ratio", "middle half", "time", "other's", "of peak"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.refused:
            table.add_row(row.title, row.mode[:5], str(row.shape), "refused")
            continue
        times = (_seconds(row.seconds), _seconds(row.peer_seconds))
        table.add_row(row.title, row.mode[:5], str(row.shape), _ratio(row), f"{row.low:.2f}–{row.high:.2f}",
                      *times, f"{row.percent_of_peak:.0f}%")  # fmt: skip
    table.caption = f"times per {' and '.join(sorted(units))}"
    return table


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")


def shapes_of(rows: Sequence[Row]) -> list[Shape]:
    """All shapes, the least arithmetic first."""
    found = {Shape(*row.shape) for row in rows}
    return sorted(found, key=lambda s: (s.batch * s.hidden * (s.inputs + s.hidden) * s.steps, s))


def _cells(rows: Sequence[Row], shapes: Sequence[Shape], show) -> list[str]:
    by_shape = {Shape(*row.shape): row for row in rows}
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
