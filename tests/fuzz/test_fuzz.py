"""Public calls with all that can be odd about them, for some seconds each; `make fuzz` goes on for an hour.

A fault of a kernel ends the process, so the calls run in one of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
SECONDS = {"layers": 40, "stepper": 12}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="guard pages are made with mprotect")


def fuzz(target, note, *options, seconds):
    """Fuzz a target from a fixed seed; whether nothing was found, and what there is to say of it."""
    arguments = [target, "--seconds", str(seconds), "--seed", "0", "--note", str(note), *options]
    ended = subprocess.run(
        [sys.executable, str(RUN), *arguments], capture_output=True, text=True, timeout=10 * seconds + 120, check=False
    )
    last = note.read_text() if note.exists() else "none"
    said = f"ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}\nthe last example:\n{last}"
    return ended.returncode == 0, said


# Two odd things at once, of layers, still meet what torch itself does otherwise: `make fuzz`, or -m slow.
@pytest.mark.parametrize("target", ["stepper", pytest.param("layers", marks=pytest.mark.slow)])
def test_nothing_crashes_and_nothing_is_wrong_in_silence(target, tmp_path):
    passed, said = fuzz(target, tmp_path / "example", seconds=SECONDS[target])
    assert passed, said


@pytest.mark.parametrize(
    ("target", "check"),
    [
        ("stepper", "input"),
        *(
            pytest.param("layers", check, marks=pytest.mark.slow)
            for check in ("memory", "shapes", "addresses", "sizes", "order")
        ),
    ],
)
def test_a_check_that_is_missing_is_found(target, check, tmp_path):
    """In a call that went wrong, which it does not with the check: see the test before."""
    example = tmp_path / "example"
    passed, said = fuzz(target, example, "--broken", check, seconds=60)
    assert example.exists(), said
    assert not passed, said
