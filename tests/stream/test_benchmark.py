"""The benchmark of a step runs, and ours says what its peers say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_it_measures_every_shape():
    command = [sys.executable, "-m", "benchmarks.streams", "--rounds", "1"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("recollect ") == done.stdout.count("B=") == 4
