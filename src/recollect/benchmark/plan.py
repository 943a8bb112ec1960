"""Which shapes fit into a time, and how much of it each may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recollect.benchmark import timing
from recollect.benchmark.subject import PASSES, Shape, Subject, multiply_adds

LEAST_PAIRS = 5  # fewer have no middle half to speak of
MOST_PAIRS = 15
# What is planned leaves room for guesses that were too low, and for more pairs where the noise wants them.
_PLANNED = 0.75
# Guesses: what a usual call reaches of the peak, and the peer's time in ours.
_EFFICIENCY, _PEER = 0.5, 1.5


@dataclass(frozen=True)
class Item:
    """One shape of one subject.

    Attributes:
        seconds: a guess of what it takes with the fewest pairs; how items share the time.
    """

    subject: Subject
    shape: Shape
    seconds: float


def whole_grid(subjects: Sequence[Subject], peak: float) -> list[Item]:
    """Every shape of every subject, subject by subject."""
    return [Item(each, shape, guess(each, shape, peak)) for each in subjects for shape in each.shapes]


def fitting(subjects: Sequence[Subject], peak: float, seconds: float) -> list[Item]:
    """As many shapes as ``seconds`` have room for: a shape is taken for all subjects or for none.

    So the means of two subjects are over the same shapes. The first shape of a subject is always there; `run.measure`
    leaves it out if there is no time when its turn comes.

    Args:
        peak: of the machine, in GFLOP/s.

    Returns:
        Items, subject by subject, shapes in each subject's order.
    """
    grid = whole_grid(subjects, peak)
    room = seconds * _PLANNED
    taken = set()
    for rank in range(max((len(each.shapes) for each in subjects), default=0)):
        shapes = {each.shapes[rank] for each in subjects if rank < len(each.shapes)}
        cost = sum(item.seconds for item in grid if item.shape in shapes - taken)
        if rank == 0 or cost <= room:
            taken |= shapes
            room -= cost
    return [item for item in grid if item.shape in taken]


def guess(subject: Subject, shape: Shape, peak: float) -> float:
    """About how many seconds a subject takes at a shape, parity and warm-up included, with the fewest pairs."""
    flops = 2 * multiply_adds(4, shape) * PASSES[subject.mode]
    pair = (
        flops * (2 if subject.is_cost else 1 + _PEER) / (peak * 1e9 * _EFFICIENCY)
        + shape.steps * subject.step_seconds
        + 2 * (timing.REST + timing.SAMPLE)
    )
    return subject.setup + pair * (1 + timing.WARM_UP + LEAST_PAIRS)
