"""A stepper in a process where torch cannot be imported: the same bits, and kernels from the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import recollect
from recollect import nn
from recollect.stream import Stepper

CODE = """
import sys
sys.modules["torch"] = None  # importing it fails
import numpy as np
import recollect
from recollect.engine.llvm import fixed, kernels

def compiled(*given):
    raise AssertionError("a kernel was compiled though it is on the disk")

fixed.compile_module = kernels.compile_module = compiled
path, x, y = sys.argv[1:]
stepper = recollect.stream.Stepper.load(path)
x = np.load(x)
half = len(x) // 2
found = [stepper.step(each) for each in x[:half]]
memory = stepper.snapshot()
stepper.reset()
stepper.restore(memory)
found += [stepper.step(each) for each in x[half:]]
np.save(y, np.array(found))
loaded = {name for name, module in sys.modules.items() if module}
foreign = {"torch", "sklearn", "polars", "scipy", "matplotlib"} & loaded
assert not foreign, foreign
"""


def test_the_same_bits_without_torch_and_without_compiling(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(nn.LSTM(3, 20, num_layers=2), torch.nn.Linear(20, 2))
    recollect.save(model, tmp_path / "model")
    x = np.random.default_rng(0).normal(size=(10, 4, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    stepper = Stepper.load(tmp_path / "model")  # leaves its kernels on the disk
    expected = np.array([stepper.step(each) for each in x])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE, *(str(tmp_path / name) for name in ("model", "x.npy", "y.npy"))],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(recollect.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
