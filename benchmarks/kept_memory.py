"""Memory that is kept for backward passes and after them, ours beside torch.nn's: python -m benchmarks.kept_memory.

Each case runs in a process of its own, as memory that a process once had stays with it. What a case holds is what the
process has resident at its end, and at most, beyond what it had before it.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.checkpoint import checkpoint

import recollect

STEPS, BATCH, INPUTS, HIDDEN, LOSSES = 100, 32, 32, 128, 20


def resident() -> int:
    """Bytes of the process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def losses_kept(layer: torch.nn.Module, x: torch.Tensor) -> object:
    """Keep the losses of steps whose backward pass has run."""
    kept = []
    for _ in range(LOSSES):
        loss = layer(x)[0].sum()
        loss.backward()
        kept.append(loss)
    return kept


def losses_summed(layer: torch.nn.Module, x: torch.Tensor) -> object:
    """Add up the losses of steps whose backward pass has run, as for a mean to print."""
    total = torch.zeros(())
    for _ in range(LOSSES):
        loss = layer(x)[0].sum()
        loss.backward()
        total = total + loss
    return total


def forward_alone(layer: torch.nn.Module, x: torch.Tensor) -> object:
    """Keep what some forward passes leave for backward passes to come."""
    return [layer(x)[0].sum() for _ in range(LOSSES)]


def checkpointed(layer: torch.nn.Module, x: torch.Tensor) -> object:
    """The same, each under torch.utils.checkpoint, which is to keep next to nothing."""
    return [checkpoint(layer, x, use_reentrant=False)[0].sum() for _ in range(LOSSES)]


def moved_away(layer: torch.nn.Module, x: torch.Tensor) -> object:
    """The same, where hooks move all that is saved elsewhere, which is to leave next to nothing."""
    with torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: None):
        return [layer(x)[0].sum() for _ in range(LOSSES)]


CASES: dict[str, Callable[[torch.nn.Module, torch.Tensor], object]] = {
    function.__name__: function for function in (losses_kept, losses_summed, forward_alone, checkpointed, moved_away)
}
LAYERS = {"torch.nn": torch.nn.LSTM, "ours": recollect.nn.LSTM}


def measure(case: str, whose: str) -> tuple[int, int]:
    """The bytes that a case holds at its end, and at most."""
    torch.manual_seed(0)
    layer, x = LAYERS[whose](INPUTS, HIDDEN), torch.randn(STEPS, BATCH, INPUTS)
    layer(x)[0].sum().backward()  # what is made once
    recollect.release_buffers()
    gc.collect()
    before, most, stop = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.001):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    held = CASES[case](layer, x)
    gc.collect()
    recollect.release_buffers()
    after = resident()
    stop.set()
    watcher.join()
    del held
    return after - before, max(most, after) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, help="measure one case in this process")
    parser.add_argument("--whose", choices=LAYERS)
    options = parser.parse_args()
    if options.case:
        print(*measure(options.case, options.whose))
        return
    table = Table(title=f"MiB, LSTM, B {BATCH}, T {STEPS}, I {INPUTS}, H {HIDDEN}, {LOSSES} losses")
    for heading in ("case", "ours, held", "torch.nn, held", "ours, most", "torch.nn, most"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for case, function in CASES.items():
        figures = {}
        for whose in LAYERS:
            command = [sys.executable, "-m", "benchmarks.kept_memory", "--case", case, "--whose", whose]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            figures[whose] = [int(number) / 2**20 for number in said.split()]
        (held, most), (their_held, their_most) = figures["ours"], figures["torch.nn"]
        described = f"{case}: {(function.__doc__ or '').partition(chr(10))[0]}"
        table.add_row(described, *(f"{figure:.1f}" for figure in (held, their_held, most, their_most)))
    Console().print(table)


if __name__ == "__main__":
    main()
