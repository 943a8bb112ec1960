"""A bar for what takes longer than a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds of work before a bar is shown: what is done by then needs none.
_PATIENCE = 1.0


@contextmanager
def progress_bar(what: str, total: int, shown: bool, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while the block runs, where that is a terminal and the block lasts over a second.

    Args:
        what: is being done.
        total: how many parts the work has.
        shown: False to show nothing at all.
        console: where to draw; None means standard error.

    Yields:
        A function to call with the number of parts that are done since the last call.
    """
    console = console or Console(stderr=True)
    # FORCE_COLOR makes rich take any file for a terminal; a bar in a log file is noise.
    shown = shown and console.is_interactive and console.file.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task, begun, running = bar.add_task(what, total=total), time.perf_counter(), False

    def advance(parts: int) -> None:
        nonlocal running
        bar.advance(task, parts)
        if shown and not running and time.perf_counter() - begun > _PATIENCE:
            bar.start()
            running = True

    try:
        yield advance
    finally:
        if running:
            bar.stop()
