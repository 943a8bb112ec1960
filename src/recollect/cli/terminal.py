"""Where a command shows things: tables with all of their cells, and streams whose reader may go away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table

_ANY_WIDTH = 1_000_000


@contextmanager
def unread() -> Iterator[None]:
    """Let a command go on to its end where nobody reads its output any more, as in ``recollect fit ... | head -1``.

    What it writes to files is not lost then; what it would have shown is.
    """
    streams: Any = sys.stdout, sys.stderr
    shown: Any = [stream and _Stream(stream) for stream in streams]  # a process may have none
    sys.stdout, sys.stderr = shown
    try:
        yield
    finally:
        for stream in filter(None, shown):
            stream.flush()
        sys.stdout, sys.stderr = streams


class _Stream:
    """A stream that is turned to the null device where its reader goes away."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            return do()


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
