"""The programs in ``benchmarks/`` run from end to end; what they compare is compared by themselves first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["streams", "--rounds", "1"], {"recollect ": 4, "B=": 4, "refused": 0}),
        (["first_calls", "--rounds", "1"], {"compiled ": 1, "from disk ": 1}),
        (["long_sequences", "--steps", "4000", "--passes", "1"], {"MiB beyond": 2, "refused": 0}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_it_prints_every_figure(arguments: list[str], lines: dict[str, int]):
    command = [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {text: done.stdout.count(text) for text in lines} == lines
