"""Where everything in the drawing of a step stands: boxes, lines, the frame of the cell.

Layers go from left to right at distances that leave room for curves; `levels` says how high everything stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from recollect.errors import GraphError
from recollect.graph.drawing import symbols
from recollect.graph.drawing.blocks import Block, blocks
from recollect.graph.drawing.layers import Layers, Place, arrange
from recollect.graph.drawing.levels import levels
from recollect.graph.graph import Graph

# The most boxes that a page could show, and a person read.
MOST_BLOCKS = 400

SIZE = 30.0  # of a box, up and down, and of a circle
NAME = 17.0  # room for a name above a box
_READING = 68.0  # for what was measured of a state outside of the cell
GAP = 34.0  # between layers, for curves
_RAILS = (22.0, 40.0, 64.0)  # from the frame's edge: the rail of h, that of x, and the boxes they lead to
_ENTRY, _EXIT = 26.0, 40.0  # from a previous state to the frame; the last stretch, where y_t leaves upwards
_APART, _LINES_APART = 12.0, 14.0


@dataclass(frozen=True)
class Box:
    """A block with its place: the middle, and its size."""

    block: Block
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Line:
    """How a value gets from one box to another.

    Attributes:
        source, target: the numbers of their blocks.
        points: the stations from left to right; between the 2nd and 3rd, 4th and 5th, ... the line may rise or
            fall, else it is level. A line that is drawn with square corners has its corners here instead.
        square: which of the two.
        mark: what stands at its end.
    """

    source: int
    target: int
    points: tuple[tuple[float, float], ...]
    square: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Layout:
    """A drawing of a step, in pixels.

    Attributes:
        boxes: in the order of the blocks.
        lines: one for each input of each box.
        frame: left, top, right and bottom of the cell.
        carried: the numbers of the blocks on the main lines of states.
        rails: the upright lines that bring x_t and h_{t-1} to the gates: the block, x, and the ends in y.
        output: where the line of y_t leaves that of the first state upwards; the number of that state's exit.
        width, height: of all of it.
    """

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    frame: tuple[float, float, float, float]
    carried: frozenset[int]
    rails: tuple[tuple[int, float, float, float], ...]
    output: tuple[int, float]
    width: float
    height: float


def lay_out(graph: Graph, below: Callable[[Block], float] | None = None) -> Layout:
    """Lay out the drawing of a step.

    Args:
        graph: a cell's; its first output is the state that W_hh multiplies.
        below: how much room to leave below a box; None leaves none.

    Raises:
        GraphError: there would be more than `MOST_BLOCKS` boxes.
    """
    found = blocks(graph)
    if len(found) > MOST_BLOCKS:
        raise GraphError("the step is too large to be drawn", given=f"{len(found)} boxes", expected=f"<= {MOST_BLOCKS}")
    layers = arrange(graph, found)
    widths = [_width(block) for block in found]
    columns = _columns(layers, widths, 0.0 if below is None else _READING)
    return _Placing(found, layers, widths, _rooms(found, below), columns).layout()


def _width(block: Block) -> float:
    if block.round:
        return SIZE
    if block.kind in ("previous", "state", "input"):
        return symbols.width(block.label) + 8
    return max(SIZE + 6, symbols.width(block.label) + (16 if block.kind == "share" else 18))


def has_name(block: Block, exits: Iterable[int], number: int) -> bool:
    """Whether a box has its name above it: that of a new state stands at its exit."""
    return block.name is not None and number not in exits


def exits(found: Sequence[Block]) -> set[int]:
    """The blocks whose values are new states."""
    return {block.inputs[0].source for block in found if block.kind == "state"}


def _height(block: Block) -> float:
    """Of the box: marks at its inputs stand one below the other."""
    marks = sum(wire.mark.isalpha() for wire in block.inputs)
    return max(SIZE, 13.0 * marks + 4)


def _rooms(found: Sequence[Block], below: Callable[[Block], float] | None) -> list[tuple[float, float]]:
    """How much room each block needs above and below its middle."""
    named = exits(found)
    return [
        (
            _height(block) / 2 + (NAME if has_name(block, named, number) else 0),
            _height(block) / 2 + (0 if below is None else below(block)),
        )
        for number, block in enumerate(found)
    ]


@dataclass(frozen=True)
class _Column:
    left: float
    right: float

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


def _columns(layers: Layers, widths: Sequence[float], ends: float) -> list[_Column]:
    """Where each layer begins and ends; the first and the last are at least ``ends`` wide."""
    columns: list[_Column] = []
    left = 8.0
    for number, layer in enumerate(layers.places):
        width = max((widths[place.block] for place in layer if not place.passes), default=0.0)
        if number in (0, len(layers.places) - 1):
            width = max(width, ends)
        columns.append(_Column(left, left + width))
        left += width + (_ENTRY + _RAILS[-1] if number == 0 else GAP)
        if number == len(layers.places) - 2:
            left += _EXIT + _ENTRY
    return columns


class _Placing:
    def __init__(
        self,
        found: list[Block],
        layers: Layers,
        widths: list[float],
        rooms: list[tuple[float, float]],
        columns: list[_Column],
    ) -> None:
        self.found, self.layers, self.widths, self.rooms, self.columns = found, layers, widths, rooms, columns
        self.y = self._levels()

    def _extent(self, place: Place) -> tuple[float, float]:
        return (0.0, 0.0) if place.passes else self.rooms[place.block]

    def _apart(self, upper: Place, lower: Place) -> float:
        apart = _LINES_APART if upper.passes and lower.passes else _APART
        return self._extent(upper)[1] + self._extent(lower)[0] + apart

    def _levels(self) -> dict[int, float]:
        first = self.layers.places[0]
        h = next((place for place in first if self.found[place.block].state == self._first_state), None)
        shares = [place for place in self.layers.places[1] if self._takes_h(place)]
        # Its rail leads from h to these.
        pulls = [] if h is None else [(h, place) for place in shares]
        y = levels(self.layers.places, self._apart, pulls)
        if h is not None and len(shares) == 1 and h.line is None:  # straight into the only one
            y[id(h)] = y[id(shares[0])] + ports(SIZE, self.found[shares[0].block], [0.0, 0.0])[0]
        return y

    @property
    def _first_state(self) -> str | None:
        return next((block.state for block in self.found if block.kind == "state"), None)

    def _takes_h(self, place: Place) -> bool:
        block = self.found[place.block]
        kinds = {self.found[wire.source].kind for wire in block.inputs}
        return not place.passes and block.kind == "share" and "previous" in kinds

    def layout(self) -> Layout:
        everything = [(place, self.y[id(place)]) for layer in self.layers.places for place in layer]
        inner = [each for each in everything if 0 < each[0].layer < len(self.columns) - 1] or everything
        top = min(y - self._extent(place)[0] for place, y in inner) - 22
        bottom = max(y + self._extent(place)[1] for place, y in everything) + 22
        shift = 44.0 - min(top, min(y - self._extent(place)[0] for place, y in everything))
        self.y = {key: round(value + shift, 1) for key, value in self.y.items()}
        left, right = self.columns[0].right + _ENTRY, self.columns[-1].left - _ENTRY
        frame = (left, top + shift, right, bottom + shift)
        boxes = tuple(self._box(number, frame) for number in range(len(self.found)))
        rails = self._rails(boxes, frame)
        carried = frozenset(place.block for place in self.layers.of if place is not None and place.line is not None)
        output = next(number for number, block in enumerate(self.found) if block.kind == "state")
        return Layout(
            boxes, tuple(self._lines(boxes, rails)), frame, carried, rails, (output, right - _EXIT / 2),
            self.columns[-1].right + 8, frame[3] + 44,
        )  # fmt: skip

    def _box(self, number: int, frame: tuple[float, float, float, float]) -> Box:
        block, place = self.found[number], self.layers.of[number]
        if place is None:  # x_t, below its rail
            return Box(block, frame[0] + _RAILS[1], frame[3] + 30, self.widths[number], 20)
        column = self.columns[place.layer]
        width = self.widths[number]
        x = column.left + width / 2 if block.kind == "state" else column.middle
        x = column.right - width / 2 if block.kind == "previous" else x
        return Box(block, x, self.y[id(place)], width, _height(block))

    def _rails(
        self, boxes: Sequence[Box], frame: tuple[float, float, float, float]
    ) -> tuple[tuple[int, float, float, float], ...]:
        """The rails that lead from x_t and from the first state to the shares, as far as these reach."""
        found = []
        for source, box in enumerate(boxes):
            ends = [
                box.y + port
                for box in boxes
                for wire, port in zip(
                    box.block.inputs, ports(box.height, box.block, [0.0] * len(box.block.inputs)), strict=True
                )
                if box.block.kind == "share" and wire.source == source
            ]
            if ends:
                start = box.y - box.height / 2 if box.block.kind == "input" else box.y
                x = frame[0] + _RAILS[box.block.kind == "input"]
                found.append((source, x, min(start, *ends), max(start, *ends)))
        return tuple(found)

    def _lines(self, boxes: Sequence[Box], rails: Sequence[tuple[int, float, float, float]]) -> Iterable[Line]:
        rail = {source: x for source, x, _, _ in rails}
        for number, box in enumerate(boxes):
            inputs = box.block.inputs
            came = [self._came_from(number, position) for position in range(len(inputs))]
            heights = [box.y if each is None else self.y[id(each)] for each in came]
            for position, (wire, port) in enumerate(
                zip(inputs, ports(box.height, box.block, [y - box.y for y in heights]), strict=True)
            ):
                start, end = boxes[wire.source], (box.x - reach(box, port), round(box.y + port, 1))
                if box.block.kind == "share":
                    x = rail[wire.source]
                    below = start.block.kind == "input"
                    first = (x, start.y - start.height / 2) if below else (start.x + start.width / 2, start.y)
                    corner = () if below else ((x, start.y),)
                    yield Line(wire.source, number, (first, *corner, (x, end[1]), end), square=True)
                    continue
                stations = [end, (self.columns[self._layer(number)].left, end[1])]
                place = came[position]
                while place is not None:
                    column, y = self.columns[place.layer], self.y[id(place)]
                    if place.passes:
                        stations += [(column.right, y), (column.left, y)]
                        place = place.before[0]
                    else:
                        stations += [(self._behind(place), y), (start.x + start.width / 2, y)]
                        place = None
                yield Line(wire.source, number, tuple(stations[::-1]), mark=wire.mark)

    def _behind(self, place: Place) -> float:
        """Where the lines that leave a place may begin to rise or fall."""
        right = self.columns[place.layer].right
        return right + _ENTRY + _RAILS[1] + 6 if place.layer == 0 else right

    def _came_from(self, number: int, position: int) -> Place | None:
        return self.layers.lines.get((number, position))

    def _layer(self, number: int) -> int:
        place = self.layers.of[number]
        return 0 if place is None else place.layer


def ports(size: float, block: Block, heights: Sequence[float]) -> list[float]:
    """Where the lines enter a box, in y from its middle, in the order of the inputs.

    Args:
        size: of the box, up and down.
        block: that stands in it.
        heights: where each line comes from, in y from the box's middle. One that comes straight stays straight.
    """
    count = len(heights)
    order = sorted(range(count), key=lambda position: (heights[position], position))
    middle = (count - 1) / 2
    if block.kind != "share":
        middle = next((at for at, position in enumerate(order) if abs(heights[position]) < 0.5), middle)
    furthest = max(middle, count - 1 - middle, 0.5)
    step = min(16.0 if furthest < 1 else 13.0 if size > SIZE else 11.0, (size / 2 - 3.5) / furthest)
    found = [0.0] * count
    for at, position in enumerate(order):
        found[position] = (at - middle) * step
    return found


def reach(box: Box, port: float) -> float:
    """How far left of the middle of a box a line ends that enters ``port`` below it."""
    if not box.block.round:
        return box.width / 2
    return max((box.width / 2) ** 2 - port**2, 0.0) ** 0.5
