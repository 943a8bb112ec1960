"""Memory and time of training on a long sequence in segments: ``python -m benchmarks.long_sequences``.

Each figure comes from a process of its own: the peak of its resident memory during one forward and backward pass,
beyond what is resident before it with x, y, their gradients and the weights in place; and the median time of the
passes that follow. The gradients of both ways are compared before anything is printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from recollect.benchmark.parity import norm_difference

CHILD = """
import resource, sys, time
import torch
import recollect

steps, batch, hidden, passes, turned, checkpoint, path = *map(int, sys.argv[1:6]), *sys.argv[6:]
recollect.set_backend("llvm")
torch.manual_seed(0)
layer = recollect.nn.LSTM(32, hidden, batch_first=turned > 0, checkpoint=None if checkpoint == "none" else checkpoint)
axes = lambda steps: (batch, steps) if turned else (steps, batch)
small = torch.zeros(*axes(64), 32, requires_grad=True)
layer(small)[0].sum().backward()  # kernels are compiled
layer.zero_grad()
x = torch.randn(*axes(steps), 32, requires_grad=True)
grad = torch.randn(*axes(steps), hidden)
place = [torch.ones_like(each) for each in (x, grad)]  # as large as dx and y, gone before these are made
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
del place
layer(x)[0].backward(grad)
beyond = peak() - before
torch.save([each.grad for each in (x, *layer.parameters())], path)
x.grad = None
times = []
for _ in range(passes):
    start = time.perf_counter()
    layer(x)[0].backward(grad)
    times.append(time.perf_counter() - start)
    x.grad = None
print(beyond, *times)
"""


def measure(
    steps: int, batch: int, hidden: int, passes: int, turned: bool, checkpoint: str, path: Path
) -> tuple[float, float]:
    """Bytes beyond what is in place, and seconds of a pass; the gradients are left at the path."""
    arguments = [str(each) for each in (steps, batch, hidden, passes, int(turned), checkpoint, path)]
    printed = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], check=True, capture_output=True, text=True
    ).stdout.split()
    return float(printed[0]), statistics.median(map(float, printed[1:]))


def main() -> int:
    """Print a table; 1 where gradients differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_sequences", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="time steps (default 100000)")
    parser.add_argument("--batch", type=int, default=8, help="sequences (default 8)")
    parser.add_argument("--hidden", type=int, default=128, help="hidden units (default 128)")
    parser.add_argument("--passes", type=int, default=3, help="passes that are timed (default 3)")
    parser.add_argument("--batch-first", action="store_true", help="x is [B, T, I]")
    options = parser.parse_args()
    sizes = (options.steps, options.batch, options.hidden, options.passes, options.batch_first)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("segments", "whole")]
        found = [measure(*sizes, way, path) for way, path in zip(("auto", "none"), paths, strict=True)]
        apart = norm_difference(*(torch.load(path) for path in paths))
    print(
        f"LSTM training, float32, B={options.batch}, I=32, H={options.hidden}, T={options.steps}"
        f"{', batch first' if options.batch_first else ''}"
    )
    if not apart <= 1e-4:
        print(f"  refused: gradients differ by {apart:.1e}")
        return 1
    for name, (beyond, seconds) in zip(('checkpoint="auto"', "at once"), found, strict=True):
        print(f"  {name:18} {beyond / 2**20:8.0f} MiB beyond {seconds:7.2f} s a pass {seconds / found[1][1]:6.2f}×")
    print(f"  largest difference of a gradient: {apart:.1e} of its norm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
