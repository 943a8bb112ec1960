"""Tables that show all of their cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table

_ANY_WIDTH = 1_000_000


class Terminal(Console):
    """Standard output, where a table is wider than the terminal if its words would not fit otherwise.

    Rich cuts cells, to nothing at last; a terminal puts the rest of a long line into the next one. What comes out of
    files is text: brackets and colons in it are no markup and no emoji.
    """

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **{"crop": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        options = options or self.options
        if isinstance(renderable, Table):
            needed = Measurement.get(self, options.update_width(_ANY_WIDTH), renderable)
            wraps = not any(column.no_wrap for column in renderable.columns)
            least = needed.minimum if wraps else needed.maximum  # its minimum lets them wrap all the same
            options = options.update_width(max(least, options.max_width))
        return super().render(renderable, options)
