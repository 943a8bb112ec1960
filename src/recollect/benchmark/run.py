"""Measure: parity first, then pairs, within a time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import recollect
from recollect.benchmark import plan, results, timing
from recollect.benchmark.machine import Peak
from recollect.benchmark.parity import PARITY
from recollect.benchmark.plan import Item
from recollect.benchmark.results import Results, Row
from recollect.benchmark.subject import Subject

# Told what is measured next, and the part of the whole that is done.
Progress = Callable[[str, float], None]


def installed(subjects: Sequence[Subject]) -> tuple[list[Subject], dict[str, str]]:
    """The subjects whose peers are there, and for the others why not, by title."""
    absent = {each.title: each.missing() for each in subjects if each.missing()}
    reasons = {
        title: f"{' and '.join(names)} not installed (pip install 'recollect[bench]')"
        for title, names in absent.items()
    }
    return [each for each in subjects if each.title not in absent], reasons


def measure(
    items: Sequence[Item],
    machine: dict[str, Any],
    peak: Peak,
    *,
    least: int = plan.LEAST_PAIRS,
    most: int = plan.MOST_PAIRS,
    deadline: float = math.inf,
    progress: Progress = lambda _text, _done: None,
) -> Results:
    """Measure one item after the other, with our backend forced so that a fallback could not flatter.

    Each item may use its share of the time that is left; what the deadline leaves no room for is named. The first
    is measured in any case.

    Args:
        least, most: pairs of each item.
        deadline: of `time.perf_counter`.
    """
    found = Results(machine)
    whole = sum(item.seconds for item in items)
    ahead = whole
    with recollect.set_backend("llvm"):
        for item in items:
            name = f"{item.subject.title} {item.subject.mode} {tuple(item.shape)}"
            progress(name, 1 - ahead / whole)
            peak.look()
            now = time.perf_counter()
            until = now + (deadline - now) * item.seconds / ahead
            ahead -= item.seconds
            last = deadline if found.rows else math.inf  # one figure is better than none
            try:
                row = _one(item, least, most, until, last) if now < last else None
            except ImportError as error:  # there, but it cannot be loaded
                found.skipped[item.subject.title] = f"{item.subject.peer} cannot be imported ({error})"
                continue
            if row is None:
                found.left_out.append(name)
            else:
                found.rows.append(row)
    found.set_peak(peak.gflops)
    progress("", 1.0)
    return found


def _one(item: Item, least: int, most: int, until: float, deadline: float) -> Row | None:
    torch.manual_seed(0)
    row = results.heading(item.subject, item.shape)
    trial = item.subject.prepare(item.shape)
    if not trial.difference <= PARITY:  # NaN is no parity either
        return dataclasses.replace(row, refused=f"results differ by {trial.difference:.1e}, relative")
    pair = timing.paired(trial.ours, trial.peer, least=least, most=most, until=until, deadline=deadline)
    if pair is None:
        return None
    return dataclasses.replace(row, **results.figures(item.subject, trial, pair))
