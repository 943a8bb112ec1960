"""The benchmark runs: what it measures is for a quiet machine, that it can is for every one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_it_measures_and_prints_a_ratio_for_every_shape():
    options = ["--only", "LSTM vs torch", "--pairs", "2", "--steps", "2", "--no-file"]
    command = [sys.executable, "-m", "benchmarks", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("×") >= 10
