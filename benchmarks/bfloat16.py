"""Products in bfloat16 beside float32, on a CPU with AVX512-BF16: ``python -m benchmarks.bfloat16``.

The same LSTM in both precisions, in turn in one process: medians of the float32 time over the bfloat16 time, and how
far apart outputs and gradients are, ``‖Δ‖₂ / ‖g‖₂`` of the tensor that is furthest. Beyond the promised bound no speed
is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

import recollect
from recollect.benchmark.parity import Run, infer, norm_difference, results, train
from recollect.benchmark.timing import paired
from recollect.errors import BackendError

SHAPES = [(32, 64, 256, 100), (64, 64, 256, 100), (128, 128, 512, 50), (32, 256, 1024, 20)]  # (B, I, H, T)
BOUND = 2e-2


def in_precision(precision: str, layer: torch.nn.Module, x: torch.Tensor) -> Run:
    """A call of the layer."""

    def run() -> list[torch.Tensor]:
        with recollect.set_precision(precision):
            return [layer(x)[0]]

    return run


def main() -> int:
    """Print a line for each shape and mode; 1 where results differ, 2 where the CPU cannot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bfloat16", description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of runs for each figure (default 15)")
    pairs = parser.parse_args().pairs
    try:
        recollect.set_precision("bfloat16")
    except BackendError as error:
        print(error, file=sys.stderr)
        return 2
    recollect.set_backend("llvm")
    failed = False
    for batch, inputs, hidden, steps in SHAPES:
        torch.manual_seed(0)
        layer = recollect.nn.LSTM(inputs, hidden)
        x = torch.randn(steps, batch, inputs, requires_grad=True)
        leaves, grads = [x, *layer.parameters()], [torch.randn(steps, batch, hidden)]
        runs = [in_precision(precision, layer, x) for precision in ("bfloat16", "float32")]
        apart = norm_difference(*(results(run, leaves, grads) for run in runs))
        print(f"LSTM, B={batch}, I={inputs}, H={hidden}, T={steps}: ‖Δ‖/‖g‖ at most {apart:.1e}")
        if not apart <= BOUND:
            print("  refused: further apart than", BOUND)
            failed = True
            continue
        for mode in ("inference", "training"):
            calls = [infer(run) if mode == "inference" else train(run, leaves, grads) for run in runs]
            timed = paired(*calls, least=pairs, most=pairs)
            assert timed is not None  # there is no deadline
            print(f"  {mode:9} {statistics.median(timed.ratios()):5.2f}×")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
