"""One step of a cell as an SVG."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping

from recollect.graph.drawing import readings as measured
from recollect.graph.drawing import symbols
from recollect.graph.drawing.layout import SIZE, Box, Layout, Line, exits, has_name, lay_out
from recollect.graph.drawing.readings import Reading
from recollect.graph.graph import Graph
from recollect.graph.latex import plain

# How many colours the style sheet has for gates; a cell with more begins again.
GATES = 6
_LOOP, _LOOPS_APART, _ROUND = 26.0, 22.0, 8.0
_READABLE = 0.8  # no drawing is made smaller than that; it is scrolled instead


def draw_step(
    graph: Graph, name: str = "cell", *, loops: bool = False, readings: Mapping[str, Reading] | None = None
) -> str:
    """Draw a step: time goes from left to right, x_t comes from below, y_t leaves upwards.

    Args:
        graph: a cell's; its first output is the state that W_hh multiplies.
        name: of the cell.
        loops: fold time: lead every state from its exit back to its entry, one step later.
        readings: what was measured: at the node of the graph with the number ``"12"``, of the state ``"prev.c"`` as
            the step found it and as it left it, ``"c"``.

    Returns:
        An ``<svg>`` for a page that has the style sheet of this folder, inside of an element of class ``drawing``.

    Raises:
        GraphError: the step is too large to be drawn.
    """
    layout = lay_out(graph, None if readings is None else measured.room)
    return _Drawing(graph, name, layout, readings or {}).svg(loops)


def in_words(graph: Graph, name: str) -> str:
    """The step in words, for who cannot see a drawing."""
    states = " and ".join(state for state, _ in graph.outputs)
    return f"One step of the cell {name}, whose states are {states}: " + "; ".join(plain(graph)) + "."


def picture(width: float, height: float, left: float, label: str, kind: str, body: str) -> str:
    """An SVG of a size in pixels that shrinks with its page, as far as it can still be read."""
    return (
        f'<svg class="{kind}" viewBox="{left:g} 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}" '
        f'style="width:{width:.0f}px;min-width:{width * _READABLE:.0f}px">{body}</svg>'
    )


def head(x: float, y: float, colour: str, *, up: bool = False) -> str:
    """The head of an arrow whose tip is at x, y."""
    return f'<path class="head {colour}" d="M{x:g} {y:g}{"l-4 8h8z" if up else "l-8 -4v8z"}"/>'


def dot(x: float, y: float, colour: str) -> str:
    """A dot where lines part."""
    return f'<circle class="dot {colour}" cx="{x:g}" cy="{y:g}" r="3"/>'


class _Drawing:
    def __init__(self, graph: Graph, name: str, layout: Layout, readings: Mapping[str, Reading]) -> None:
        self.graph, self.name, self.layout, self.readings = graph, name, layout, readings
        self.exits = exits([box.block for box in layout.boxes])

    def svg(self, loops: bool) -> str:
        layout = self.layout
        left, top, right, bottom = layout.frame
        entries = {box.block.state: box for box in layout.boxes if box.block.kind == "previous"}
        ends = [box for box in layout.boxes if box.block.kind == "state" and box.block.state in entries]
        ends.sort(key=lambda box: -box.y)
        pairs = [(box, entries[box.block.state]) for box in ends] if loops else []
        lowest = max(box.y + measured.room(box.block) for box in layout.boxes) if self.readings else 0.0
        height = max(layout.height, lowest + 12)
        margin = 12.0 + 12.0 * len(pairs) if pairs else 0.0
        body = [
            f'<rect class="cell" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" rx="14"/>',
            *(self._loop(place, end, entry, height) for place, (end, entry) in enumerate(pairs)),
            *(self._line(line) for line in layout.lines if not line.square),
            *(self._mark(line) for line in layout.lines if line.mark),
            *self._rails(),
            self._output(),
            *(self._box(number, box) for number, box in enumerate(layout.boxes)),
        ]
        height += _LOOPS_APART * len(pairs) + (8 if pairs else 0)
        label = in_words(self.graph, self.name)
        return picture(layout.width + 2 * margin, height, -margin, label, "step", "".join(body))

    def _colour(self, number: int) -> str:
        """The class of a box."""
        block = self.layout.boxes[number].block
        if block.gate is not None:
            return f"gate{block.gate % GATES}"
        return "input" if block.kind == "input" else self._line_colour(number)

    def _line_colour(self, number: int) -> str:
        """The class of what leaves a box."""
        block = self.layout.boxes[number].block
        if block.kind in ("previous", "state") or number in self.exits or number in self.layout.carried:
            return "state"
        return "plain" if block.gate is None and block.kind != "input" else self._colour(number)

    def _line(self, line: Line) -> str:
        (x, y), *stations = line.points
        path = [f"M{x:g} {y:g}"]
        for place, (to_x, to_y) in enumerate(stations):
            if place % 2 == 1 and to_y != y:
                half = (to_x - x) / 2
                path.append(f"C{x + half:g} {y:g} {to_x - half:g} {to_y:g} {to_x:g} {to_y:g}")
            elif to_x != x:
                path.append(f"H{to_x:g}")
            x, y = to_x, to_y
        colour = self._line_colour(line.source)
        ends = f'data-from="{line.source}" data-to="{line.target}"'
        return f'<path class="line {colour}" {ends} d="{"".join(path)}"/>{head(x, y, colour)}'

    def _mark(self, line: Line) -> str:
        """The sign or letter at the end of a line, on the side that the others do not come from."""
        x, y = line.points[-1]
        beside = y + 12 if y > self.layout.boxes[line.target].y + 1 else y - 4
        return symbols.svg(symbols.words(line.mark), x - 11, beside, style="mark")

    def _rails(self) -> Iterator[str]:
        """The upright lines of x_t and h_{t-1}, and what leads from them to the gates, with dots where they part."""
        for source, x, low, high in self.layout.rails:
            colour, box = self._line_colour(source), self.layout.boxes[source]
            start = high if box.block.kind == "input" else box.y
            if box.block.kind != "input":
                yield f'<path class="line {colour}" d="M{box.x + box.width / 2:g} {start:g}H{x:g}"/>'
            # It bends round into the box at its end, so it stops short of that.
            top = low + _ROUND if low < start else low
            bottom = high - _ROUND if high > start else high
            yield f'<path class="line {colour}" d="M{x:g} {top:g}V{bottom:g}"/>'
            for line in self.layout.lines:
                if not line.square or line.source != source:
                    continue
                end_x, end_y = line.points[-1]
                ends = f'data-from="{line.source}" data-to="{line.target}"'
                bend = f"M{x:g} {end_y:g}"
                if end_y in (low, high) and end_y != start:
                    bend = f"M{x:g} {top if end_y == low else bottom:g}Q{x:g} {end_y:g} {x + _ROUND:g} {end_y:g}"
                elif low < end_y < high:
                    yield dot(x, end_y, colour)
                yield f'<path class="line {colour}" {ends} d="{bend}H{end_x:g}"/>{head(end_x, end_y, colour)}'
            straight = any(line.source == source and not line.square for line in self.layout.lines)
            if box.block.kind != "input" and (low < start < high or straight):
                yield dot(x, start, colour)

    def _output(self) -> str:
        number, x = self.layout.output
        y, tip = self.layout.boxes[number].y, self.layout.frame[1] - 12
        label = symbols.svg(symbols.symbol("y", "t"), x, tip - 8, style="state")
        line = f'<path class="line state" d="M{x:g} {y:g}V{tip + 6:g}"/>'
        return f"{line}{head(x, tip, 'state', up=True)}{dot(x, y, 'state')}{label}"

    def _loop(self, place: int, end: Box, entry: Box, height: float) -> str:
        """From the exit of a state below the cell to its entry."""
        out, back = 12.0 * (place + 1), entry.x - entry.width / 2
        right, left, low = self.layout.width + out - 6, -out + 6, height + _LOOPS_APART * place
        r = _ROUND
        path = (
            f"M{end.x + end.width / 2:g} {end.y:g}H{right - r:g}q{r:g} 0 {r:g} {r:g}V{low - r:g}q0 {r:g} {-r:g} {r:g}"
            f"H{left + r:g}q{-r:g} 0 {-r:g} {-r:g}V{entry.y + r:g}q0 {-r:g} {r:g} {-r:g}H{back:g}"
        )
        name = str(end.block.state)
        words = (
            *symbols.state(name, 0),
            *symbols.words(" is "),
            *symbols.state(name, 1),
            *symbols.words(" one step later"),
        )
        middle = (self.layout.frame[0] + self.layout.frame[2]) / 2
        half = symbols.width(words) / 2
        behind = f'<rect class="behind" x="{middle - half:g}" y="{low - 8:g}" width="{2 * half:g}" height="16"/>'
        label = behind + symbols.svg(words, middle, low + 4, style="loop-label")
        return f'<path class="line loop state" d="{path}"/>{head(back, entry.y, "state")}{label}'

    def _box(self, number: int, box: Box) -> str:
        block, colour = box.block, self._colour(number)
        left, top = box.x - box.width / 2, box.y - box.height / 2
        if block.kind in ("previous", "state", "input"):
            shape = ""
        elif block.round:
            shape = f'<circle class="box {colour}" cx="{box.x:g}" cy="{box.y:g}" r="{SIZE / 2:g}"/>'
        else:
            shape = (f'<rect class="box {block.kind} {colour}" x="{left:g}" y="{top:g}" '
                     f'width="{box.width:g}" height="{box.height:g}" rx="7"/>')  # fmt: skip
        parts = [shape, symbols.svg(block.label, box.x, box.y + 5, style="label" if shape else f"label {colour}")]
        if block.name is not None and has_name(block, self.exits, number):
            parts.append(symbols.svg(symbols.symbol(block.name), box.x, top - 5, style=f"name {colour}"))
        reading = self.readings.get(self._key(number))
        title = f"{block.name} = {block.words}" if block.name else block.words
        if reading is not None and measured.room(block):
            values = reading.values
            title += f"; mean {reading.mean:.4g}, from {min(values):.4g} to {max(values):.4g}" if values else ""
            title += "" if reading.gradient is None else f"; norm of the gradient {reading.gradient:.4g}"
            parts.append(measured.draw(reading, block, box.x, box.y + box.height / 2, box.width, colour))
        return f'<g data-block="{number}"><title>{html.escape(title)}</title>{"".join(parts)}</g>'

    def _key(self, number: int) -> str:
        block = self.layout.boxes[number].block
        if block.kind == "previous":
            return f"prev.{block.state}"
        return str(block.state) if block.kind == "state" else str(block.nodes[-1]) if block.nodes else ""
