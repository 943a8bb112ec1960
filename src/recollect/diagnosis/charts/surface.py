"""The error surface as a map: colours for the loss, cliffs hatched, paths of training on it."""

from __future__ import annotations

import hashlib
import html
import itertools
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recollect.diagnosis.charts.image import data_uri

if TYPE_CHECKING:
    from recollect.diagnosis.surface.result import ErrorSurface

Array = NDArray[np.float64]
Place = tuple[float, float]

_WIDTH = 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 518, 12, 412
_BAR = 542, 560
_LEGEND, _LINE, _SIGNS = 486, 24, 470
# Behind a key whose lines are white.
_GROUND = "#3b528b"
# How many styles of lines surface.css knows, by colour, dashes and the shape of their marks.
_STYLES = 4
_CONTOURS = 12
# Marks that would lie closer than this are left out.
_APART = 8.0
# A loss that spans so much is shown by its logarithm.
_DECADES = 2.0


def draw(surface: ErrorSurface) -> str:
    """An SVG of the surface that needs nothing else; in a page it takes that page's colours."""
    colours = _Colours(surface.loss)
    frame = _Frame(surface.x, surface.y)
    # Two pictures in one page must not share a pattern that one of them may hide.
    key = hashlib.sha256(surface.loss.tobytes() + surface.cliffs.tobytes()).hexdigest()[:8]
    legend = _Legend()
    image = data_uri(colours.shown(surface.loss)[::-1], colours.low, colours.high)
    parts = [
        f"<defs>{_hatching(f'cliff-{key}', 'hatch', 45)}{_hatching(f'void-{key}', 'void', -45)}"
        f'<clipPath id="frame-{key}"><rect {_box(_LEFT, _TOP, _RIGHT, _BOTTOM)}/></clipPath></defs>',
        f'<g clip-path="url(#frame-{key})">'
        f'<image {_box(*frame.cells)} preserveAspectRatio="none" href="{image}"/>'
        f'<path class="contours" d="{_contours(surface, colours, frame)}"/>',
    ]
    void = ~np.isfinite(surface.loss)
    if void.any():
        parts.append(f'<path fill="url(#void-{key})" d="{_cells(void, frame)}"/>')
        legend.box("loss not finite", f"void-{key}", "void")
    if surface.cliffs.any():
        parts.append(f'<path fill="url(#cliff-{key})" d="{_cells(surface.cliffs, frame)}"/>')
        parts.append(f'<path class="edge" d="{_outline(surface.cliffs, frame)}"/>')
        legend.box("cliff", f"cliff-{key}", "edge", _GROUND)
    lines = []
    for number, (name, places) in enumerate(surface.paths.items()):
        lines.append(_path(places, number % _STYLES, frame))
        legend.line(number % _STYLES, f"{name}: {_ends(surface.path_losses[name])}")
    # The first is the thinnest: it lies on top, so that where paths agree all of them are seen.
    parts += lines[::-1]
    if frame.holds(surface.centre):
        parts.append(_cross(*frame.at(surface.centre)))
        legend.cross("present weights")
    parts.append("</g>")
    parts += [_axes(surface, frame), _bar(colours)]
    height = legend.height
    style = files("recollect.diagnosis.charts").joinpath("surface.css").read_text(encoding="utf-8")
    return (
        f'<svg class="surface" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(_say(surface))}"><style>{style}</style>{"".join(parts)}{legend.drawn}</svg>'
    )


class _Colours:
    """From losses to shades: the logarithm where they span decades, and without the last percent at the top."""

    def __init__(self, loss: Array) -> None:
        finite = loss[np.isfinite(loss)]
        low, high = np.percentile(finite, [1, 99])
        self.log = bool(low > 0 and math.log10(high / low) >= _DECADES)
        self.low, self.high = self._scaled(np.array([low if self.log else finite.min(), high])).tolist()
        if self.high <= self.low:
            self.low, self.high = self.low - 0.5, self.high + 0.5
        self.beyond = float(self._scaled(finite.max())) > self.high
        self.below = float(self._scaled(max(finite.min(), 1e-300) if self.log else finite.min())) < self.low

    def shown(self, loss: Array) -> Array:
        """What is painted; a loss that is not finite stays so, one without a logarithm is the lowest."""
        if not self.log:
            return loss
        return np.where(np.isfinite(loss), self._scaled(np.maximum(loss, 10.0**self.low)), np.nan)

    def _scaled(self, loss: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return np.log10(loss) if self.log else np.asarray(loss, dtype=float)

    def ticks(self) -> list[tuple[float, str]]:
        if not self.log:
            return _ticks(self.low, self.high, 6)
        every = max(1, math.ceil((self.high - self.low) / 6))
        powers = range(math.ceil(self.low), math.floor(self.high) + 1, every)
        if len(powers) < 2:
            return [(each, f"{10**each:.2g}") for each in np.linspace(self.low, self.high, 4)]
        return [(power, f"{10.0**power:g}" if -4 < power < 5 else f"1e{power}") for power in powers]


class _Frame:
    """From coordinates to places in the picture."""

    def __init__(self, x: Array, y: Array) -> None:
        self.x, self.y = x, y
        steps = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
        # Half a cell of paint lies beyond the first and last points; the frame ends with it.
        self._low = float(x[0] - steps[0]), float(y[0] - steps[1])
        self._high = float(x[-1] + steps[0]), float(y[-1] + steps[1])
        self.cells = _LEFT, _TOP, _RIGHT, _BOTTOM

    def at(self, place: Sequence[float] | Array) -> Place:
        across, up = ((each - low) / (high - low) for each, low, high in zip(place, self._low, self._high, strict=True))
        return _LEFT + (_RIGHT - _LEFT) * across, _BOTTOM - (_BOTTOM - _TOP) * up

    def holds(self, place: Sequence[float] | Array) -> bool:
        return all(low <= each <= high for each, low, high in zip(place, self._low, self._high, strict=True))


class _Legend:
    """Keys under the picture: paths on the left, signs on the right."""

    def __init__(self) -> None:
        self._columns: dict[float, list[str]] = {_LEFT: [], _SIGNS: []}

    def line(self, style: int, words: str) -> None:
        self._add(_LEFT, words, lambda x, y: _stroke(f"M{x} {y}H{x + 36}", style) + _mark(x + 18, y, style))

    def cross(self, words: str) -> None:
        self._add(_SIGNS, words, lambda x, y: _cross(x + 18, y))

    def box(self, words: str, pattern: str, outline: str, ground: str = "none") -> None:
        def key(x: float, y: float) -> str:
            box = f'x="{x}" y="{y - 7}" width="36" height="14"'
            return f'<rect {box} fill="{ground}"/><rect class="{outline}" {box} style="fill:url(#{pattern})"/>'

        self._add(_SIGNS, words, key)

    def _add(self, x: float, words: str, key: Callable[[float, float], str]) -> None:
        y = _LEGEND + len(self._columns[x]) * _LINE
        self._columns[x].append(f'{key(x, y)}<text class="name" x="{x + 46}" y="{y + 4.5}">{html.escape(words)}</text>')

    @property
    def height(self) -> int:
        return _LEGEND + _LINE * max(map(len, self._columns.values()))

    @property
    def drawn(self) -> str:
        return "".join(key for column in self._columns.values() for key in column)


def _say(surface: ErrorSurface) -> str:
    """What the picture shows, for who cannot see it."""
    return " ".join(str(surface).split())


def _ends(losses: Array) -> str:
    return f"loss {losses[0]:.3g} to {losses[-1]:.3g}"


def _path(places: Array, style: int, frame: _Frame) -> str:
    """A line through all places as far as the frame shows it, and marks at some of them."""
    points = [point for place in places if all(map(math.isfinite, point := frame.at(place)))]
    line, at, arrows = [], None, []
    for start, end in itertools.pairwise(points):
        if (kept := _within(start, end)) is None:
            continue
        first, last = kept
        # One stroke as long as it does not leave the frame, so that dashes go on from step to step.
        line.append(("" if at == first else "M{:.1f} {:.1f}".format(*first)) + "L{:.1f} {:.1f}".format(*last))
        at = last
        if last != end:
            turn = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
            arrows.append(
                f'<path class="mark p{style}" d="M0 0l-11 5.5v-11z" transform="translate({last[0]:.1f} '
                f'{last[1]:.1f}) rotate({turn:.1f})"/>'
            )
    shown: list[Place] = []
    for point in points:
        if _within(point, point) and all(math.dist(point, each) >= _APART for each in shown):
            shown.append(point)
    return _stroke("".join(line), style) + "".join(_mark(*point, style) for point in shown) + "".join(arrows)


def _within(start: Place, end: Place) -> tuple[Place, Place] | None:
    """The part of a straight line inside of the frame (Liang and Barsky 1984); None if there is none."""
    enter, leave = 0.0, 1.0
    for at, to, low, high in ((start[0], end[0], _LEFT, _RIGHT), (start[1], end[1], _TOP, _BOTTOM)):
        if at == to:
            if not low <= at <= high:
                return None
            continue
        first, last = sorted(((low - at) / (to - at), (high - at) / (to - at)))
        enter, leave = max(enter, first), min(leave, last)
    if enter > leave:
        return None

    def along(share: float) -> Place:
        return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])

    return along(enter) if enter > 0 else start, along(leave) if leave < 1 else end


def _stroke(line: str, style: int) -> str:
    return f'<path class="casing" d="{line}"/><path class="path p{style}" d="{line}"/>' if line else ""


def _mark(x: float, y: float, style: int) -> str:
    if style == 0:
        return f'<circle class="mark p0" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    shape = ["", "m-4.5-4.5h9v9h-9z", "m0-5.5l5 9h-10z", "m0-5.5l5.5 5.5-5.5 5.5-5.5-5.5z"][style]
    return f'<path class="mark p{style}" d="M{x:.1f} {y:.1f}{shape}"/>'


def _cross(x: float, y: float) -> str:
    arms = f"M{x - 6:.1f} {y:.1f}h12M{x:.1f} {y - 6:.1f}v12"
    return f'<path class="under" d="{arms}"/><path class="cross" d="{arms}"/>'


def _contours(surface: ErrorSurface, colours: _Colours, frame: _Frame) -> str:
    """Lines of equal loss, at equal distances on the colour bar."""
    from contourpy import contour_generator

    shown = np.ma.masked_invalid(np.clip(colours.shown(surface.loss), colours.low, colours.high))
    contours = contour_generator(surface.x, surface.y, shown)
    levels = np.linspace(colours.low, colours.high, _CONTOURS + 2)[1:-1]
    lines = [np.asarray(line, dtype=float) for level in levels for line in contours.lines(float(level))]
    return "".join("M" + "L".join("{:.1f} {:.1f}".format(*frame.at(point)) for point in line) for line in lines)


def _edges(frame: _Frame) -> tuple[list[float], list[float]]:
    """Where columns and rows of cells begin and end."""
    columns, rows = len(frame.x), len(frame.y)
    return (
        [_LEFT + (_RIGHT - _LEFT) * each / columns for each in range(columns + 1)],
        [_BOTTOM - (_BOTTOM - _TOP) * each / rows for each in range(rows + 1)],
    )


def _cells(marks: NDArray[np.bool_], frame: _Frame) -> str:
    across, up = _edges(frame)
    return "".join(
        f"M{across[first]:.1f} {up[row]:.1f}H{across[last]:.1f}V{up[row + 1]:.1f}H{across[first]:.1f}z"
        for row, each in enumerate(marks)
        for first, last in _runs(each)
    )


def _outline(marks: NDArray[np.bool_], frame: _Frame) -> str:
    """The edges between cells that are marked and cells that are not."""
    across, up = _edges(frame)
    padded = np.pad(marks, 1)
    level = padded[1:, 1:-1] != padded[:-1, 1:-1]
    upright = (padded[1:-1, 1:] != padded[1:-1, :-1]).T
    return "".join(
        [f"M{across[a]:.1f} {up[row]:.1f}H{across[b]:.1f}" for row, each in enumerate(level) for a, b in _runs(each)]
        + [
            f"M{across[column]:.1f} {up[a]:.1f}V{up[b]:.1f}"
            for column, each in enumerate(upright)
            for a, b in _runs(each)
        ]
    )


def _runs(marks: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where runs of True begin and end."""
    changes = np.flatnonzero(np.diff(np.pad(marks, 1).astype(np.int8)))
    return list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))


def _axes(surface: ErrorSurface, frame: _Frame) -> str:
    parts = [f'<rect class="frame" {_box(_LEFT, _TOP, _RIGHT, _BOTTOM)}/>']
    for value, text in _ticks(float(surface.x[0]), float(surface.x[-1]), 6):
        x = frame.at((value, surface.y[0]))[0]
        parts.append(f'<path class="ticks" d="M{x:.1f} {_BOTTOM}v5"/>')
        parts.append(f'<text x="{x:.1f}" y="{_BOTTOM + 19}" text-anchor="middle">{text}</text>')
    for value, text in _ticks(float(surface.y[0]), float(surface.y[-1]), 6):
        y = frame.at((surface.x[0], value))[1]
        parts.append(f'<path class="ticks" d="M{_LEFT} {y:.1f}h-5"/>')
        parts.append(f'<text x="{_LEFT - 9}" y="{y + 4.5:.1f}" text-anchor="end">{text}</text>')
    middle = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    first, second = map(html.escape, surface.axes)
    parts.append(f'<text class="name" x="{middle[0]}" y="{_BOTTOM + 42}" text-anchor="middle">{first}</text>')
    turned = f'transform="rotate(-90 20 {middle[1]})"'
    parts.append(f'<text class="name" x="20" y="{middle[1]}" text-anchor="middle" {turned}>{second}</text>')
    return "".join(parts)


def _bar(colours: _Colours) -> str:
    left, right = _BAR
    shades = data_uri(np.linspace(1, 0, 200)[:, None], 0.0, 1.0)
    box = _box(left, _TOP + 24, right, _BOTTOM)
    parts = [
        f'<image {box} preserveAspectRatio="none" href="{shades}"/><rect class="frame" {box}/>'
        f'<text class="name" x="{left}" y="{_TOP + 12}">loss</text>'
    ]
    for value, text in colours.ticks():
        share = (value - colours.low) / (colours.high - colours.low)
        y = _BOTTOM - (_BOTTOM - _TOP - 24) * share
        parts.append(
            f'<path class="ticks" d="M{right} {y:.1f}h5"/><text x="{right + 9}" y="{y + 4.5:.1f}">{text}</text>'
        )
    return "".join(parts)


def _ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round numbers between two, at most so many, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(each * power for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(apart) + 1e-9))
    numbers = [each * apart for each in range(math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9) + 1)]
    plain = digits < 5 and max(map(abs, numbers), default=0.0) < 1e5
    texts = [f"{number:.{digits}f}" if plain else f"{number:.3g}" for number in numbers]
    return [(number, text.replace("-", "−")) for number, text in zip(numbers, texts, strict=True)]


def _hatching(name: str, style: str, angle: int) -> str:
    return (
        f'<pattern id="{name}" width="5" height="5" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate({angle})"><path class="{style}" d="M0 0V5"/></pattern>'
    )


def _box(left: float, top: float, right: float, bottom: float) -> str:
    return f'x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"'


def section(surface: ErrorSurface) -> str:
    """Part of a page: the picture, how to read it, the numbers."""
    words = html.escape(str(surface))
    return f"""<figure class="error-surface">{draw(surface)}</figure>
<p class="read"><b>How to read this.</b> The loss over a plane through the present weights. Hatched places are cliffs:
the loss changes there as fast as if it went through a fifth of its range in a fortieth of the plane's width, and ten
times as fast as at the median. Lines follow weights step by step; an arrow is a step that leaves the picture.</p>
<pre class="words">{words}</pre>"""
