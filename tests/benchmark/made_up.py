"""Figures that nobody measured."""

from __future__ import annotations

from dataclasses import replace

from recollect.benchmark import catalogue, results
from recollect.benchmark.results import Results, Row
from recollect.benchmark.subject import Shape, Subject, Trial

MACHINE = {"cpu": "Example", "llvm_cpu": "example", "threads": 2, "dtype": "float32", "torch": "2.13.0"}
FIGURES = {"ratio": 2.0, "low": 1.9, "high": 2.1, "seconds": 1e-5, "peer_seconds": 2e-5, "gflops": 50.0, "pairs": 5}


def row(ratio: float = 2.0, low: float | None = None, high: float | None = None, **others) -> Row:
    """A row of the LSTM against torch.nn; the middle half is narrow if it is not given."""
    head = {"title": "LSTM vs torch.nn", "peer": "torch.nn", "mode": "training", "section": "speed", "unit": "step"}
    spread = {"low": 0.99 * ratio if low is None else low, "high": 1.01 * ratio if high is None else high}
    return Row(**{**head, "shape": Shape(1, 16, 32, 100), **FIGURES, "ratio": ratio, **spread, **others})


def everything() -> Results:
    """A row for every subject and shape of the whole grid."""
    rows = [
        replace(results.heading(subject, shape), **FIGURES)
        for subject in catalogue.subjects(full=True)
        for shape in subject.shapes
    ]
    found = Results(dict(MACHINE), rows)
    found.set_peak(100.0)
    return found


def subject(prepare, **others) -> Subject:
    """One that is prepared by ``prepare``, at one small shape."""
    return Subject("LSTM", "a peer", "inference", "speed", (Shape(1, 2, 3, 4),), prepare, **others)


def trial(difference: float = 0.0, ours=lambda: None, peer=lambda: None, work=(1.0, 1.0)) -> Trial:
    """One that does nothing."""
    return Trial(ours, peer, difference, 10.0, work)
