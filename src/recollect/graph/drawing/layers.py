"""Blocks in layers from left to right, in an order with few crossings (after K. Sugiyama and others, 1981).

A block stands one layer behind the last of those that it needs. What reaches further than the next layer goes
through a place of its own in each layer between, so lines keep clear of boxes; all that leaves one block goes
by one line as far as it can.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from recollect.graph import ops
from recollect.graph.drawing.blocks import Block
from recollect.graph.graph import Graph

_SWEEPS = 24
# Beyond so many places the order is only swept, as trying exchanges takes long.
_MANY = 600


@dataclass(eq=False)
class Place:
    """Where a block stands, or where the line of its value passes a layer.

    Attributes:
        block: its number.
        layer: from 0, the previous states, to the last, the exits.
        passes: only the line passes.
        line: the number of the state whose main line it is on, 0 for the one that is drawn along the top.
        before, after: the places that are joined to it in the layers beside its own.
    """

    block: int
    layer: int
    passes: bool
    line: int | None = None
    before: list[Place] = field(default_factory=list, repr=False)
    after: list[Place] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Layers:
    """The places of a drawing.

    Attributes:
        places: of each layer, from the top.
        of: the place of each block; None for x_t, which comes from below.
        lines: for each wire, (its target, its place among the target's inputs) -> where it comes from in the
            layer before. Inputs of shares are not among them: they are drawn as two rails.
    """

    places: list[list[Place]]
    of: list[Place | None]
    lines: dict[tuple[int, int], Place]


def arrange(graph: Graph, blocks: Sequence[Block]) -> Layers:
    """Give every block its layer, and every layer its order."""
    main = main_lines(graph, blocks)
    depth = _depths(blocks)
    of: list[Place | None] = [
        None if block.kind == "input" else Place(number, depth[number], passes=False)
        for number, block in enumerate(blocks)
    ]
    last = max(depth)
    layers: list[list[Place]] = [[] for _ in range(last + 1)]
    for place in of:
        if place is not None:
            layers[place.layer].append(place)
    lines: dict[tuple[int, int], Place] = {}
    trunks: list[list[Place]] = [[] if place is None else [place] for place in of]
    wires = [(n, i, w.source) for n, block in enumerate(blocks) for i, w in enumerate(block.inputs)]
    for target, position, source in wires:
        end, trunk = of[target], trunks[source]
        if end is None or not trunk or blocks[target].kind == "share":
            continue
        while trunk[-1].layer < end.layer - 1:
            passing = Place(source, trunk[-1].layer + 1, passes=True)
            _join(trunk[-1], passing)
            layers[passing.layer].append(passing)
            trunk.append(passing)
        start = trunk[end.layer - 1 - trunk[0].layer]
        lines[target, position] = start
        _join(start, end)
    for number, path in enumerate(main):
        for source, target in pairwise(path):
            for place in (*trunks[source][: depth[target] - depth[source]], of[target]):
                if place is not None and place.line is None:
                    place.line = number
    _order(layers)
    return Layers(layers, of, lines)


def main_lines(graph: Graph, blocks: Sequence[Block]) -> list[list[int]]:
    """The blocks along which a state is carried to the next step by arithmetic alone, for each state that is.

    The first is that of the first state which is not the output, such as the LSTM's c, where there is one.
    """
    exits = {block.state: number for number, block in enumerate(blocks) if block.kind == "state"}
    followers: list[list[int]] = [[] for _ in blocks]
    for number, block in enumerate(blocks):
        for wire in block.inputs:
            followers[wire.source].append(number)

    def carries(block: Block) -> bool:
        if block.kind == "state":
            return True
        return block.kind == "operation" and not any(
            graph.nodes[i].op in ops.ROWS and ops.ROWS[graph.nodes[i].op].costly for i in block.nodes
        )

    found = []
    for start, block in enumerate(blocks):
        end = exits.get(block.state) if block.kind == "previous" else None
        came: dict[int, int] = {start: start}
        queue = [start] if end is not None else []
        for here in queue:
            for each in followers[here]:
                if each not in came and carries(blocks[each]):
                    came[each] = here
                    queue.append(each)
        if end in came:
            path = [end]
            while path[-1] != start:
                path.append(came[path[-1]])
            found.append(path[::-1])
    output = graph.outputs[0][0]
    return sorted(found, key=lambda path: blocks[path[0]].state == output)


def _depths(blocks: Sequence[Block]) -> list[int]:
    """The layer of each block: one more than the last of its inputs; what has none as late as it can be."""
    depth = [0] * len(blocks)
    for number, block in enumerate(blocks):
        if block.kind not in ("input", "previous"):
            depth[number] = 1 + max((depth[wire.source] for wire in block.inputs), default=0)
            if block.kind != "share":  # the shares have a layer to themselves
                depth[number] = max(2, depth[number])
    last = max(depth)
    users: list[list[int]] = [[] for _ in blocks]
    for number, block in enumerate(blocks):
        for wire in block.inputs:
            users[wire.source].append(number)
        if block.kind == "state":
            depth[number] = last
    for number, block in enumerate(blocks):
        if not block.inputs and block.kind not in ("input", "previous", "share"):
            depth[number] = max(2, min(depth[user] for user in users[number]) - 1)
    return depth


def _join(start: Place, end: Place) -> None:
    start.after.append(end)
    end.before.append(start)


def _order(layers: list[list[Place]]) -> None:
    """Put each layer in the order, of those tried, with the fewest crossings; the first main line is on top."""

    def top(place: Place) -> bool:
        return place.line != 0

    for layer in layers:
        layer.sort(key=top)
    rank: dict[int, float] = {}

    def renew(layer: list[Place]) -> None:
        rank.update((id(place), at) for at, place in enumerate(layer))

    for layer in layers:
        renew(layer)
    best, fewest = [list(layer) for layer in layers], crossings(layers)
    few = sum(map(len, layers)) <= _MANY
    for sweep in range(_SWEEPS):
        if fewest == 0:
            break
        forth = sweep % 2 == 0
        for layer in layers[1:] if forth else layers[-2::-1]:

            def middle(place: Place, forth: bool = forth) -> float:
                beside = place.before if forth else place.after
                return sum(rank[id(each)] for each in beside) / len(beside) if beside else rank[id(place)]

            layer.sort(key=lambda place: (top(place), middle(place)))
            renew(layer)
        if few:
            for layer in layers:
                _exchange(layer, rank)
        count = crossings(layers)
        if count < fewest:
            best, fewest = [list(layer) for layer in layers], count
    for layer, ordered in zip(layers, best, strict=True):
        layer[:] = ordered


def _exchange(layer: list[Place], rank: dict[int, float]) -> None:
    """Exchange neighbours as long as that saves crossings."""
    for _ in range(len(layer)):
        changed = False
        for at, (upper, lower) in enumerate(pairwise(layer)):
            if upper.line == 0 or _between(lower, upper, rank) >= _between(upper, lower, rank):
                continue
            layer[at], layer[at + 1] = lower, upper
            rank[id(lower)], rank[id(upper)] = at, at + 1
            changed = True
            break
        if not changed:
            return


def _between(upper: Place, lower: Place, rank: dict[int, float]) -> int:
    """How often the lines of two neighbours cross."""
    return sum(
        rank[id(a)] > rank[id(b)]
        for ours, theirs in ((upper.before, lower.before), (upper.after, lower.after))
        for a in ours
        for b in theirs
    )


def crossings(layers: Sequence[Sequence[Place]]) -> int:
    """How often lines cross, all in all."""
    total = 0
    for layer, following in pairwise(layers):
        rank = {id(place): at for at, place in enumerate(following)}
        seen: list[int] = []
        for place in layer:
            ends = sorted(rank[id(each)] for each in place.after)
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total
