"""What the time of an LSTM's call is made of, shape by shape: ``python -m benchmarks.limits``.

For each shape, in turn in one process, on all threads and on one:

    call     a call of T steps, a step's share of it; after a rest, as `recollect bench` measures long calls
    fixed    what a call costs beside its steps, by a second call of T / 2 steps
    exp      what exponentials and divisions add, beside a cell of the same gates that has none
    tile     the rest: products, loads and stores
    at peak  the products alone, if every multiply-add were done at the FMA peak, the best that was ever seen here

The figures are medians in microseconds a step; the last two columns are the shares of the peak that the median call and
the fastest one reach. On a shared machine these differ, as the peak is what it can do at its best.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product

import torch
from rich.progress import track

import recollect
from recollect.benchmark.layers import SHAPES
from recollect.benchmark.machine import Peak
from recollect.benchmark.timing import REST


@recollect.cell(gates="i f g o", states="h c")
def no_exponentials(inp, rec, prev):
    """An LSTM's gates and memory without its functions."""
    i, f, g, o = (getattr(inp, gate) + getattr(rec, gate) for gate in "ifgo")
    c = f * prev.c + i * g
    return o * c, c


def calls(sizes: Sequence[int], steps: int, *, training: bool) -> list[Callable[[], object]]:
    """A call of the LSTM of T steps and of T / 2, and of the cell without exponentials of T."""
    batch, inputs, hidden = sizes
    found = []
    for cell, length in ((recollect.cells.lstm, steps), (recollect.cells.lstm, steps // 2), (no_exponentials, steps)):
        layer = recollect.nn.Recurrent(cell, inputs, hidden)
        with torch.no_grad():
            for each in layer.parameters():
                each.mul_(0.1)  # or its memory would grow beyond any number
        x = torch.randn(length, batch, inputs, requires_grad=training)
        leaves = [x, *layer.parameters()]

        def call(layer=layer, x=x, leaves=leaves) -> object:
            y = layer(x)[0]
            return torch.autograd.grad(y, leaves, y.detach()) if training else y

        found.append(call)
    return found


def seconds(call: Callable[[], object]) -> float:
    """Of one call after a rest."""
    time.sleep(REST)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(shape: Sequence[int], peak: Peak, budget: float, *, training: bool) -> list[list[float]]:
    """Seconds of each of the `calls`, in turn."""
    *sizes, steps = shape
    end, times = time.perf_counter() + budget, [[], [], []]
    with torch.set_grad_enabled(training):
        each = calls(sizes, steps, training=training)
        for call in each:
            call()
        while time.perf_counter() < end or len(times[0]) < 5:
            peak.look(4_000_000)
            for place, call in enumerate(each):
                times[place].append(seconds(call))
    return times


def line(shape: Sequence[int], times: list[list[float]], peak: float, *, training: bool) -> str:
    """A line of the table; the peak is in GFLOP/s."""
    batch, inputs, hidden, steps = shape
    whole, half, plain = (statistics.median(its) * 1e6 for its in times)
    step = (whole - half) / (steps - steps // 2)
    fixed, exponentials = whole - step * steps, (whole - plain) / steps
    at_peak = 2e-3 * batch * 4 * hidden * (inputs + hidden) * (3 if training else 1) / peak
    columns = whole / steps, fixed / steps, exponentials, step - exponentials, at_peak
    shares = at_peak * steps / whole, at_peak * steps / min(times[0]) / 1e6
    return "".join(f"{column:9.2f}" for column in columns) + "".join(f"{share:9.0%}" for share in shares)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line (default 3)")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--most-rows", type=int, default=256, help="leave out shapes of larger B (default 256)")
    arguments = parser.parse_args()
    recollect.set_backend("llvm")
    peaks = {threads: Peak(threads) for threads in arguments.threads}
    shapes = [shape for shape in SHAPES if shape.batch <= arguments.most_rows]
    lines = list(product(peaks, (False, True), shapes))
    found = []
    for threads, training, shape in track(lines, "measuring", transient=True):
        torch.set_num_threads(threads)
        found.append(measure(shape, peaks[threads], arguments.seconds, training=training))
    heads = "".join(f"{head:>9}" for head in ("call", "fixed", "exp", "tile", "at peak", "share", "fastest"))
    before = None
    for (threads, training, shape), times in zip(lines, found, strict=True):
        if (threads, training) != before:
            print(f"{'training' if training else 'inference'}, {threads} thread(s)\n{'(B, I, H, T)':24}{heads}")
            before = threads, training
        print(f"{tuple(shape)!s:24}{line(shape, times, peaks[threads].gflops, training=training)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
