"""How high everything in a drawing stands, so that lines are straight where they can be.

Places in a row become one segment, which stands on one level: a main line, a line that passes layers with the box
it comes from, a box and the only one that follows it. Two segments may not cross, which keeps their order from above
to below free of cycles (after U. Brandes and B. Koepf, 2002). Then each segment goes to the middle of what it is
joined to, and pushes those that it touches ahead of it if all of them together gain by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from recollect.graph.drawing.layers import Place

_SWEEPS = 100
_TOUCH = 0.01
Link = tuple[Place, Place]


def levels(
    layers: Sequence[Sequence[Place]], apart: Callable[[Place, Place], float], pulls: Sequence[Link] = ()
) -> dict[int, float]:
    """Find the y of each place, by its id.

    Args:
        layers: the places of each layer, from the top.
        apart: the least distance of two neighbours, the upper one first.
        pulls: pairs that attract each other without being joined from layer to layer.
    """
    segment = _segments(layers)
    count = max(segment.values(), default=-1) + 1
    # What stands below each segment, and how far at least; joined ones, and how strongly.
    below: list[dict[int, float]] = [{} for _ in range(count)]
    above: list[dict[int, float]] = [{} for _ in range(count)]
    for layer in layers:
        for upper, lower in pairwise(layer):
            a, b = segment[id(upper)], segment[id(lower)]
            least = max(below[a].get(b, 0.0), apart(upper, lower))
            below[a][b] = above[b][a] = least
    joined: list[dict[int, float]] = [{} for _ in range(count)]
    links = [(place, after) for layer in layers for place in layer for after in place.after]
    for one, other in (*links, *pulls):
        a, b = segment[id(one)], segment[id(other)]
        if a != b:
            joined[a][b] = joined[a].get(b, 0.0) + 1.0
            joined[b][a] = joined[b].get(a, 0.0) + 1.0
    pinned = {segment[id(place)] for layer in layers for place in layer if place.line == 0}
    y = _stacked(below, above)
    for sweep in range(_SWEEPS):
        order = range(count) if sweep % 2 == 0 else range(count - 1, -1, -1)
        moved = sum(abs(_move(at, y, joined, below, above, pinned)) for at in order)
        if moved < _TOUCH:
            break
    return {key: y[at] for key, at in segment.items()}


def _segments(layers: Sequence[Sequence[Place]]) -> dict[int, int]:
    """The number of the segment of each place, by its id."""
    rank = {id(place): at for layer in layers for at, place in enumerate(layer)}
    links = [(place, after) for layer in layers for place in layer for after in dict.fromkeys(place.after)]

    def precedence(link: Link) -> tuple[int, int]:
        one, other = link
        if one.line is not None and one.line == other.line:
            return 0, one.line
        if other.passes:
            return (1 if one.passes else 2), 0
        if len(one.after) == len(other.before) == 1:
            return 3, 0
        return (4 if one.passes else 5), 0

    behind: dict[int, Place] = {}  # the place that a segment goes on with
    begun: set[int] = set()
    straight: list[list[tuple[int, int]]] = [[] for _ in layers]
    for one, other in sorted(links, key=precedence):
        a, b = rank[id(one)], rank[id(other)]
        free = id(one) not in behind and id(other) not in begun
        crosses = any((a - c) * (b - d) < 0 for c, d in straight[one.layer])
        if free and not crosses:
            behind[id(one)] = other
            begun.add(id(other))
            straight[one.layer].append((a, b))
    found: dict[int, int] = {}
    number = 0
    for layer in layers:
        for place in layer:
            if id(place) in begun:
                continue
            here: Place | None = place
            while here is not None:
                found[id(here)] = number
                here = behind.get(id(here))
            number += 1
    return found


def _stacked(below: Sequence[dict[int, float]], above: Sequence[dict[int, float]]) -> list[float]:
    """Every segment as high as those above it allow."""
    y = [0.0] * len(below)
    waiting = [len(each) for each in above]
    ready = [at for at, count in enumerate(waiting) if count == 0]
    while ready:
        at = ready.pop()
        for lower, least in below[at].items():
            y[lower] = max(y[lower], y[at] + least)
            waiting[lower] -= 1
            if waiting[lower] == 0:
                ready.append(lower)
    return y


def _move(
    start: int, y: list[float], joined: Sequence[dict[int, float]], below: Sequence[dict[int, float]],
    above: Sequence[dict[int, float]], pinned: set[int],
) -> float:  # fmt: skip
    """Move a segment towards its middle, with those that it pushes; return by how much."""

    def wish(at: int) -> tuple[float, float]:
        weight = sum(joined[at].values())
        return sum(w * (y[other] - y[at]) for other, w in joined[at].items()), weight

    pull, weight = wish(start)
    if not weight or start in pinned:
        return 0.0
    ahead = below if pull > 0 else above
    sign = 1.0 if pull > 0 else -1.0
    group, queue = {start}, [start]
    for at in queue:  # those in front that touch
        for other, least in ahead[at].items():
            if other not in group and (y[other] - y[at]) * sign - least < _TOUCH:
                group.add(other)
                queue.append(other)
                more, heavier = wish(other)
                pull, weight = pull + more, weight + heavier
    if pull * sign <= 0 or group & pinned:
        return 0.0
    step = pull / weight
    for at in group:
        for other, least in ahead[at].items():
            if other not in group:
                step = sign * min(abs(step), (y[other] - y[at]) * sign - least)
    for at in group:
        y[at] += step
    return step
