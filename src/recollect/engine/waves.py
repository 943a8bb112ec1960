"""A graph cut into waves, so that a processor with several units finds work for all of them.

A row's equations are a chain: in an LSTM tanh(c') waits for c', which waits for the gates. One row after the other,
a processor sees too few instructions ahead to do something else meanwhile. So the costly operations that wait for
no other are done for all rows, then those that wait for one, and so on; what a later wave needs of an earlier one
is left in memory in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from recollect.graph import ops
from recollect.graph.graph import Builder, Expr, Graph


@dataclass(frozen=True)
class Waves:
    """The parts of a graph, in order.

    Attributes:
        graphs: leaves are the whole graph's, and ``mid.j``, which an earlier part has as an output.
        mids: how many of these there are.
    """

    graphs: tuple[Graph, ...]
    mids: int


def cut(graph: Graph) -> Waves:
    """Cut a graph into waves."""
    wave = _waves(graph)
    count = max(wave, default=1)
    wanted: list[dict[str, int]] = [{} for _ in range(count)]
    for name, index in graph.outputs:
        wanted[wave[index] - 1][name] = index
    mids: dict[int, str] = {}
    parts: list[Graph] = []
    for number in range(count, 0, -1):  # the last first: it says what it needs of the others
        part = _Part(graph, wave, number, mids)
        built = {name: part.fetch(index) for name, index in wanted[number - 1].items()}
        parts.append(part.builder.build(built))
        for index in part.needs:
            wanted[wave[index] - 1][mids[index]] = index
    return Waves(tuple(reversed(parts)), len(mids))


def _waves(graph: Graph) -> list[int]:
    """For each node the wave in which it is computed: the most costly operations on a way to it, itself included."""
    depth: list[int] = []
    for node in graph.nodes:
        before = max((depth[arg] for arg in node.args), default=0)
        depth.append(before + (node.op in ops.ROWS and ops.ROWS[node.op].costly))
    return [max(1, each) for each in depth]


class _Part:
    """One wave under construction."""

    def __init__(self, graph: Graph, wave: list[int], number: int, mids: dict[int, str]) -> None:
        self.builder, self.needs = Builder(), list[int]()
        self._graph, self._wave, self._number, self._mids = graph, wave, number, mids
        self._known: dict[int, Expr] = {}

    def fetch(self, index: int) -> Expr:
        """A node of the whole graph: computed here, or left by an earlier wave."""
        waiting = [index]  # rather than recursion: a chain may be longer than Python's stack is deep
        while waiting:
            last = waiting[-1]
            args = self._args(last)
            missing = [arg for arg in args if arg not in self._known]
            if missing:
                waiting += reversed(missing)
                continue
            waiting.pop()
            if last not in self._known:
                self._known[last] = self._make(last, [self._known[arg] for arg in args])
        return self._known[index]

    def _is_made_here(self, index: int) -> bool:
        # A condition is no number that could be left in memory; what it compares is.
        op = self._graph.nodes[index].op
        return self._wave[index] == self._number or op in ("leaf", "const") or ops.ROWS[op].boolean

    def _args(self, index: int) -> tuple[int, ...]:
        """What a node needs before it can be had here."""
        return self._graph.nodes[index].args if self._is_made_here(index) else ()

    def _make(self, index: int, args: list[Expr]) -> Expr:
        if self._is_made_here(index):
            return self.builder.copy(self._graph.nodes[index], args)
        self.needs.append(index)
        return self.builder.leaf(self._mids.setdefault(index, f"mid.{len(self._mids)}"))
