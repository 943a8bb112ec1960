"""What the first call of a new cell costs: ``python -m benchmarks.first_calls``.

Each round starts a process with an empty directory of kernels and then one that finds them there. In both, torch and
LLVM are warm (another cell has run), so that what is timed is this cell's: writing, compiling or loading its kernels,
and a small call. The figures are medians, in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

CHILD = """
import time
import torch
import recollect

recollect.set_backend("llvm")
recollect.nn.GRU(3, 5)(torch.zeros(2, 1, 3, requires_grad=True))[0].sum().backward()
layer, x = recollect.nn.LSTM(32, 128), torch.zeros(10, 4, 32)
start = time.perf_counter()
with torch.inference_mode():
    layer(x)
middle = time.perf_counter()
layer(x)[0].sum().backward()
print((middle - start) * 1e3, (time.perf_counter() - middle) * 1e3)
"""


def first_calls(directory: str) -> list[float]:
    """Milliseconds of the first inference and of the first training call in a new process."""
    environment = os.environ | {"RECOLLECT_CACHE_DIR": directory}
    command = [sys.executable, "-c", CHILD]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return [float(each) for each in printed.split()]


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_calls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="processes of each kind (default 7)")
    rounds = parser.parse_args().rounds
    times: dict[str, list[list[float]]] = {"compiled": [], "from disk": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            for found in times.values():
                found.append(first_calls(directory))
    print("LSTM, float32, B=4, I=32, H=128, T=10")
    for name, found in times.items():
        inference, training = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"  {name:10} inference {inference:7.1f} ms, training {training:7.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
