"""Two functions timed in turn."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

# Shorter calls are repeated within one sample for so long, so that the clock is no part of what it reads.
SAMPLE = 2e-3
# Thread pools spin for about so long after their work; the next function shall have the cores for itself.
REST = 2e-3
WARM_UP = 2


@dataclass(frozen=True)
class Pair:
    """Seconds per call of two functions that were run in turn."""

    ours: list[float]
    peer: list[float]

    def ratios(self) -> list[float]:
        """Peer / ours of each pair: above 1 ours is faster."""
        return [b / a for a, b in zip(self.ours, self.peer, strict=True)]


def middle_half(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def paired(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    least: int,
    most: int,
    until: float = math.inf,
    deadline: float = math.inf,
) -> Pair | None:
    """Run A B A B ... after rounds that do not count.

    Args:
        least, most: pairs; after ``least`` of them it stops once it is ``until``.
        until, deadline: of `time.perf_counter`. If ``least`` pairs would end after ``deadline``, none is run and
            the result is None.
    """
    sides = (ours, peer)
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        once = [0.0, 0.0]
        for _ in range(WARM_UP):
            once = [_seconds(function, 1) for function in sides]
        # Where one of them is short, each follows its like, as in a loop: its code is in the caches then, and its
        # threads are awake. After a rest neither is so; that is for both or for none.
        in_loop = min(once) < SAMPLE / 2
        if time.perf_counter() + least * sum(once) * (2 if in_loop else 1) > deadline:
            return None
        calls = [math.ceil(SAMPLE / each) if in_loop else 1 for each in once]
        while len(times[1]) < least or (len(times[1]) < most and time.perf_counter() < until):
            for place, function in enumerate(sides):
                times[place].append(_sample(function, calls[place], in_loop=in_loop))
    finally:
        gc.enable()
    return Pair(*times)


def _sample(function: Callable[[], object], calls: int, *, in_loop: bool) -> float:
    time.sleep(REST)
    if in_loop:
        function()
    return _seconds(function, calls)


def _seconds(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls
