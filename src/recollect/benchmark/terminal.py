"""A whole comparison for a person at a terminal: a progress bar, tables, files."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from recollect._files import write_atomically
from recollect.benchmark import chart, machine, plan, run, tables
from recollect.benchmark.results import Results
from recollect.benchmark.subject import Subject

# Drawing and writing come after the last measurement.
_TAIL = 4.0


def compare(
    subjects: Sequence[Subject],
    *,
    seconds: float | None = None,
    least: int = plan.LEAST_PAIRS,
    most: int = plan.MOST_PAIRS,
) -> Results:
    """Measure the subjects whose peers are installed, with a progress bar on standard error.

    Args:
        seconds: for all of it; shapes and pairs are chosen to fit. If None, every shape and ``most`` pairs.
        least, most: pairs of runs for each figure.
    """
    began = time.perf_counter()
    peak = machine.Peak(torch.get_num_threads())
    there, skipped = run.installed(subjects)
    if seconds is None:
        items, deadline = plan.whole_grid(there, peak.gflops), math.inf
    else:
        deadline = began + max(seconds - _TAIL, 0.5 * seconds)
        items = plan.fitting(there, peak.gflops, deadline - time.perf_counter())
    columns = (TextColumn("measuring"), BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        found = run.measure(
            items, machine.machine(), peak, least=least, most=most, deadline=deadline,
            progress=lambda text, done: bar.update(task, description=text, completed=done),
        )  # fmt: skip
    found.skipped = skipped | found.skipped
    return found


def show(found: Results, console: Console) -> None:
    """Print the machine and the tables."""
    console.print(" · ".join(f"{name} {value}" for name, value in found.machine.items()), end="\n\n", markup=False)
    for part in tables.terminal(found, console.width):
        console.print(part, markup=False)
        console.print()


def write(found: Results, json: Path, svg: Path) -> None:
    """Write the figures and the chart, each whole or not at all; no chart where nothing was measured."""
    found.save(json)
    if found.rows:
        write_atomically(svg, chart.svg(found))
