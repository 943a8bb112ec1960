"""A cell over time as an SVG: folded, with its states led back, and unrolled into three steps."""

from __future__ import annotations

import html
from collections.abc import Mapping

from recollect.graph.drawing import symbols
from recollect.graph.drawing.readings import written
from recollect.graph.drawing.step import head, picture
from recollect.graph.graph import Graph

_BOX, _BETWEEN, _LINE, _TOP = 124.0, 92.0, 30.0, 62.0
_LINE_WITH_NUMBERS = 54.0

# The norms of a state and of its gradient as it leaves a step.
Norms = Mapping[tuple[str, int], tuple[float, float]]


def draw_unrolled(graph: Graph, name: str = "cell", *, step: int | None = None, norms: Norms | None = None) -> str:
    """Draw a cell folded, and as three steps in a row, through which the states flow.

    Args:
        graph: a cell's.
        name: of the cell.
        step: of a sequence, the number of the step in the middle; None calls it t.
        norms: (state, step) -> the norm of the state as it leaves the step, and of its gradient dL/ds.

    Returns:
        An ``<svg>``, as `draw_step` does.
    """
    return _Unrolled(graph, name, step, norms or {}).svg()


class _Unrolled:
    def __init__(self, graph: Graph, name: str, step: int | None, norms: Norms) -> None:
        self.graph, self.name, self.step, self.norms = graph, name, step, norms
        self.states = [state for state, _ in graph.outputs]
        self.label = symbols.symbol(name) if len(name) <= 2 else symbols.words(name)
        self.box = max(_BOX, symbols.width(self.label) + 60)
        self.apart = _LINE_WITH_NUMBERS if norms else _LINE
        self.height = max(64.0, self.apart * len(self.states) + (10 if norms else 4))
        self.low = _TOP + self.height  # the lower edge of the boxes
        self.loops = 16.0 * len(self.states) + 10

    def svg(self) -> str:
        left = self.loops + 14
        parts = [self._cell(left, None), self._folded(left)]
        x = left + self.box + 44.0 + self.loops
        equals = symbols.svg(symbols.words("="), x - 6, _TOP + self.height / 2 + 7, style="equals")
        parts.append(equals)
        start = x + 16
        for place, ago in enumerate((1, 0, -1)):
            parts.append(self._flow(start + place * (self.box + _BETWEEN), ago + 1))
            parts.append(self._cell(start + _BETWEEN + place * (self.box + _BETWEEN), ago))
        parts.append(self._flow(start + 3 * (self.box + _BETWEEN), -1))
        width = start + 3 * (self.box + _BETWEEN) + _BETWEEN + 8
        shared = (*symbols.words("the same weights at every step: "), *self._weights())
        bottom = self.low + max(54 + 14 * len(self.states) - 14, 40) + 8
        parts.append(symbols.svg(shared, (start + width) / 2, bottom + 10, style="note"))
        return picture(width, bottom + 22, 0, self._in_words(), "unrolled", "".join(parts))

    def _weights(self) -> symbols.Text:
        weight = (symbols.Run("W", "letter"), symbols.Run("ih", "index"), symbols.Run(", W", "letter"))
        return (*weight, symbols.Run("hh", "index"), symbols.Run(", b", "letter"))

    def _in_words(self) -> str:
        states = " and ".join(self.states)
        return (
            f"The cell {self.name}, folded: {states} lead back to it, one step later. Unrolled, it is three steps in "
            f"a row: each takes its input x and {states} from the step before, and gives its output y and {states} to "
            "the next; all of them have the same weights."
        )

    def _time(self, ago: int) -> str:
        """The index of a step that lies ``ago`` before the one in the middle."""
        if self.step is not None:
            return str(self.step - ago)
        return "t" if ago == 0 else f"t−{ago}" if ago > 0 else f"t+{-ago}"

    def _cell(self, left: float, ago: int | None) -> str:
        """A box with its input and output; of the folded cell (None) these have the index t."""
        middle, up = left + self.box / 2, _TOP - 22
        time = "t" if ago is None else self._time(ago)
        words = f"the cell {self.name}" + ("" if ago is None else f" at step {time}")
        strong = " middle" if ago == 0 else ""
        return (
            f'<g><title>{html.escape(words)}</title><rect class="cell{strong}" x="{left:g}" y="{_TOP:g}" '
            f'width="{self.box:g}" height="{self.height:g}" rx="12"/>'
            f"{symbols.svg(self.label, middle, _TOP + self.height / 2 + 5, style='label')}"
            f'<path class="line state" d="M{middle:g} {_TOP:g}V{up + 6:g}"/>{head(middle, up, "state", up=True)}'
            f"{symbols.svg(symbols.symbol('y', time), middle, up - 8, style='state')}"
            f'<path class="line input" d="M{middle:g} {self.low + 24:g}V{self.low + 6:g}"/>'
            f"{head(middle, self.low, 'input', up=True)}"
            f"{symbols.svg(symbols.symbol('x', time), middle, self.low + 40, style='state')}</g>"
        )

    def _level(self, place: int) -> float:
        """Where the line of a state is: the output's is the lowest, as it is in most drawings of a step."""
        order = len(self.states) - 1 - place
        return _TOP + self.height / 2 + (order - (len(self.states) - 1) / 2) * self.apart

    def _flow(self, left: float, ago: int) -> str:
        """The states between two boxes; ``left`` is the right edge of the earlier one."""
        parts = []
        for place, state in enumerate(self.states):
            y = self._level(place)
            parts.append(f'<path class="line state" d="M{left:g} {y:g}H{left + _BETWEEN - 6:g}"/>')
            parts.append(head(left + _BETWEEN, y, "state"))
            middle = left + _BETWEEN / 2 - 3
            parts.append(symbols.svg(symbols.symbol(state, self._time(ago)), middle, y - 9, style="state"))
            if self.step is not None and (state, self.step - ago) in self.norms:
                size, gradient = self.norms[state, self.step - ago]
                parts.append(symbols.svg(symbols.words(f"‖·‖ {written(size)}"), middle, y + 13, style="reading"))
                parts.append(symbols.svg(symbols.words(f"‖∂‖ {written(gradient)}"), middle, y + 25, style="reading"))
        return "".join(parts)

    def _folded(self, left: float) -> str:
        """The loops of the folded cell, that of the lowest line innermost."""
        parts = []
        for place, state in enumerate(self.states):
            y, out = self._level(place), 16.0 * place + 16
            right, low, r = left + self.box, self.low + 54 + 14 * place, 8.0
            parts.append(
                f'<path class="line loop state" d="M{right:g} {y:g}H{right + out - r:g}q{r:g} 0 {r:g} {r:g}V{low - r:g}'
                f"q0 {r:g} {-r:g} {r:g}H{left - out + r:g}q{-r:g} 0 {-r:g} {-r:g}V{y + r:g}q0 {-r:g} {r:g} {-r:g}"
                f'H{left - 6:g}"/>{head(left, y, "state")}'
            )
            parts.append(symbols.svg(symbols.symbol(state), right - 5, y + 5, anchor="end", style="state"))
        return "".join(parts)
