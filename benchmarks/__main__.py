"""Measure ours against its peers: ``python -m benchmarks``, or ``make bench``.

Each figure is the median of pairwise ratios, peer / ours, of runs made in turn; above 1 ours is faster. The
backend is forced, so that a fallback could not flatter, and no speed is printed for a subject whose
outputs or gradients differ from the peer's.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

import recollect
from benchmarks import layers, measure, tables

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of runs for each figure (default 15)")
    parser.add_argument("--only", default="", help="subjects whose name contains this, such as GRU")
    parser.add_argument("--steps", type=int, default=layers.STEPS, help="time steps (default 100)")
    parser.add_argument("--no-file", action="store_true", help="do not write benchmarks/results/")
    options = parser.parse_args()

    recollect.set_backend("llvm")
    console = Console()
    machine = measure.machine()
    console.print(" · ".join(f"{name} {value}" for name, value in machine.items()))
    subjects = {**layers.SUBJECTS, layers.PEEPHOLE: layers.peephole}
    chosen = {name: make for name, make in subjects.items() if options.only.lower() in name.lower()}
    rows = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(chosen) * len(layers.SHAPES) * 2)
        for name, make in chosen.items():
            for shape in layers.SHAPES:
                for mode in ("inference", "training"):
                    progress.update(task, description=f"{name} {shape} {mode}")
                    rows.append(_measure(name, make, shape, mode, options, machine))
                    progress.advance(task)
    for table in tables.terminal(rows):
        console.print(table)
    if not options.no_file and not options.only:
        RESULTS.mkdir(exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['llvm_cpu']}".lower()).strip("-")
        path = RESULTS / f"{slug}.json"
        path.write_text(json.dumps({"machine": machine, "steps": options.steps, "rows": rows}, indent=1) + "\n")
        console.print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 1 if any("refused" in row for row in rows) else 0


def _measure(name, make, shape, mode, options, machine) -> dict[str, object]:
    batch, inputs, hidden = shape
    torch.manual_seed(0)
    ours, peer = make(inputs, hidden)
    x = torch.randn(options.steps, batch, inputs, requires_grad=True)
    grad = torch.randn(options.steps, batch, hidden)
    row: dict[str, object] = {"subject": name, "shape": list(shape), "mode": mode}
    if name == layers.PEEPHOLE:
        difference = max(layers.parity_with_reference(module, x, grad) for module in (ours, peer))
    else:
        difference = layers.parity(ours, peer, x, grad)
    if not difference <= layers.PARITY:
        return row | {"refused": f"results differ by {difference:.1e}"}
    if mode == "inference":
        pair = measure.paired(layers.infer(ours, x), layers.infer(peer, x), options.pairs)
    else:
        pair = measure.paired(layers.train(ours, x, grad), layers.train(peer, x, grad), options.pairs)
    seconds = statistics.median(pair.ours)
    # Multiply-adds count two; the backward pass has two products of the forward pass's size.
    flops = (
        2 * options.steps * batch * ours.weight_ih_l0.shape[0] * (inputs + hidden) * (1 if mode == "inference" else 3)
    )
    gflops = flops / seconds / 1e9
    return row | {
        "ratio": round(pair.ratio, 3),
        "ratio_middle_half": [round(each, 3) for each in pair.spread],
        "us_per_step": round(seconds / options.steps * 1e6, 2),
        "gflops": round(gflops, 1),
        "percent_of_peak": round(100 * gflops / float(machine["fma_peak_gflops"]), 1),
        "pairs": options.pairs,
    }


if __name__ == "__main__":
    sys.exit(main())
