"""What a probe costs a training run: ``python -m benchmarks.probe``.

Three copies of a model train side by side, in turn, on the same batch: one alone, one with a probe that never comes to
a step that it probes, and one with a probe that looks at every 10th step. A turn is some steps of each; what is printed
is the median, over the rounds, of how much longer the other two take than the first. The model is an LSTM in float32
and a linear layer on its last output, trained with Adam and clipping. First the weights of all three must be the same
to the bit after 20 steps.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time

import torch
from torch import nn

import recollect
from recollect.diagnosis import Probe

_EVERY, _NEVER = 10, 1 << 40


class LastOutput(nn.Module):
    """The model."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.rnn, self.head = recollect.nn.LSTM(inputs, hidden), nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][-1])


class Training:
    """One of the runs.

    Args:
        model: is trained.
        every: of its probe; None for none.
    """

    def __init__(self, model: nn.Module, every: int | None) -> None:
        self.model, self.optimizer = model, torch.optim.Adam(model.parameters(), lr=1e-3)
        self.probe = None if every is None else Probe(model, every)
        if self.probe is not None:
            self.probe.on_train_begin(1, None)
        self.step = 0

    def run(self, x: torch.Tensor, y: torch.Tensor, steps: int) -> float:
        """Make some steps; returns the seconds that they took."""
        start = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.model(x), y)
            value = loss.item()
            loss.backward()
            clipped = recollect.clip_by_global_norm(self.model.parameters(), 1.0)
            self.optimizer.step()
            if self.probe is not None:
                self.probe.on_step(self.step, value, clipped)
            self.step += 1
        return time.perf_counter() - start


def main() -> int:
    """Print a line for each of the probes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--rounds", type=int, default=31, help="turns of each (default 31)")
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn (default 20)")
    parser.add_argument("--sizes", type=int, nargs=4, default=(32, 32, 128, 100), metavar=("B", "I", "H", "T"))
    options = parser.parse_args()
    batch, inputs, hidden, steps = options.sizes
    torch.manual_seed(0)
    recollect.set_backend("llvm")
    model = LastOutput(inputs, hidden)
    x, y = torch.randn(steps, batch, inputs), torch.randn(batch, 1)
    runs = {
        name: Training(copy.deepcopy(model), every)
        for name, every in (("no probe", None), ("between", _NEVER), (f"every {_EVERY}", _EVERY))
    }
    weights = []
    for each in runs.values():
        each.run(x, y, 20)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in each.model.parameters()]))
    if not all(torch.equal(each, weights[0]) for each in weights):
        print("refused: a probe changes what is computed", file=sys.stderr)
        return 1

    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, each in runs.items():
            times[name].append(each.run(x, y, options.steps) / options.steps)
    alone = times.pop("no probe")
    print(f"LSTM, float32, B={batch}, I={inputs}, H={hidden}, T={steps}, {torch.get_num_threads()} thread(s)")
    print(f"  no probe   {statistics.median(alone) * 1e3:8.3f} ms a step")
    for name, found in times.items():
        ratio = statistics.median(its / first for its, first in zip(found, alone, strict=True))
        print(f"  {name:10} {statistics.median(found) * 1e3:8.3f} ms a step, {(ratio - 1) * 100:+.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
