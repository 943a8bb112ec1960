"""The bar for long runs."""

import io

import pytest
from rich.console import Console

from recollect.diagnosis import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("file", "shown", "patience", "seen"),
    [
        (Terminal, True, 0, True),
        (Terminal, False, 0, False),
        (io.StringIO, True, 0, False),
        (Terminal, True, 99, False),
    ],
)
def test_a_bar_is_drawn_on_a_terminal_for_what_lasts(monkeypatch, file, shown, patience, seen):
    monkeypatch.setattr(progress, "_PATIENCE", patience)
    console = Console(file=file(), force_terminal=True, width=80)
    with progress.progress_bar("counting", 3, shown, console) as advance:
        for _ in range(3):
            advance(1)
    assert ("counting" in console.file.getvalue()) == seen
