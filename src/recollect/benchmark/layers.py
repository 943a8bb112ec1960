"""Our layers against torch.nn's, and against the loop one writes by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

import recollect
from recollect import cells
from recollect.benchmark import loops
from recollect.benchmark.parity import Run, difference, infer, results, train
from recollect.benchmark.subject import PASSES, Mode, Shape, Subject, Trial, multiply_adds

MODES: tuple[Mode, ...] = ("inference", "training")
# The first is the shape of a middling model, the next two the ends of the range; the dearest comes last.
SHAPES = (
    Shape(32, 32, 128, 100),
    Shape(1, 16, 32, 100),
    Shape(64, 64, 256, 100),
    Shape(16, 16, 64, 100),
    Shape(1, 64, 256, 100),
    Shape(8, 16, 64, 100),
    Shape(256, 64, 128, 100),
    Shape(32, 32, 128, 1000),
    Shape(16, 256, 1024, 50),
    Shape(128, 128, 512, 100),
)
# What a step of a loop in Python costs, forward and backward together, and once.
LOOP_SECONDS = {"inference": 60e-6, "training": 300e-6}
CELLS = (cells.peephole_lstm, cells.cifg_lstm, cells.mgu, cells.slstm)
_LABELS = {
    "lstm": "LSTM", "peephole_lstm": "peephole LSTM", "cifg_lstm": "CIFG LSTM", "mgu": "MGU", "slstm": "sLSTM",
}  # fmt: skip

# Makes (ours, peer) with equal weights for I and H.
Make = Callable[[int, int], tuple[nn.Module, nn.Module]]


def against_torch() -> list[Subject]:
    """LSTM, GRU and tanh RNN against torch.nn's."""
    makers = {
        "LSTM": (4, _like_torch(recollect.nn.LSTM, nn.LSTM)),
        "GRU": (3, _like_torch(recollect.nn.GRU, nn.GRU)),
        "tanh RNN": (1, _like_torch(recollect.nn.RNN, nn.RNN)),
    }
    return [
        Subject(name, "torch.nn", mode, "speed", SHAPES, partial(_prepare, make, gates, mode))
        for name, (gates, make) in makers.items()
        for mode in MODES
    ]


def against_loops() -> list[Subject]:
    """The LSTM in both modes, other cells in training, against the same step in a loop in PyTorch."""
    return [_against_loop(cells.lstm, mode) for mode in MODES] + [_against_loop(cell, "training") for cell in CELLS]


def _against_loop(cell: cells.Cell, mode: Mode) -> Subject:
    prepare = partial(_prepare, partial(_with_loop, cell), len(cell.gates), mode)
    return Subject(label(cell), "eager loop", mode, "speed", SHAPES, prepare, step_seconds=LOOP_SECONDS[mode])


def label(cell: cells.Cell) -> str:
    """A cell's name as tables print it."""
    return _LABELS[cell.name]


def module_trial(
    ours: nn.Module, peer: nn.Module, x: torch.Tensor, grad: torch.Tensor, mode: Mode, counts: tuple[float, float]
) -> Trial:
    """A trial of two modules that take ``x`` and return outputs first, their parameters in the same order.

    Args:
        counts: multiply-adds of one forward pass, and units of work.
    """
    sides = [(_runs(module, x), [x, *module.parameters()]) for module in (ours, peer)]
    apart = difference(*(results(run, leaves, [grad]) for run, leaves in sides))
    first, second = (infer(run) if mode == "inference" else train(run, leaves, [grad]) for run, leaves in sides)
    products, work = counts
    return Trial(first, second, apart, products * PASSES[mode], (work, work))


def _prepare(make: Make, gates: int, mode: Mode, shape: Shape) -> Trial:
    batch, inputs, hidden, steps = shape
    ours, peer = make(inputs, hidden)
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    grad = torch.randn(steps, batch, hidden)
    return module_trial(ours, peer, x, grad, mode, (multiply_adds(gates, shape), steps))


def _runs(module: nn.Module, x: torch.Tensor) -> Run:
    def run() -> Sequence[torch.Tensor]:
        return (module(x)[0],)

    return run


def _like_torch(ours: type[nn.Module], peer: type[nn.Module]) -> Make:
    def make(inputs: int, hidden: int) -> tuple[nn.Module, nn.Module]:
        a, b = ours(inputs, hidden), peer(inputs, hidden)
        a.load_state_dict(b.state_dict())
        return a, b

    return make


def _with_loop(cell: cells.Cell, inputs: int, hidden: int) -> tuple[nn.Module, nn.Module]:
    ours = recollect.nn.Recurrent(cell, inputs, hidden)
    loop = recollect.nn.Recurrent(cell, inputs, hidden)
    loop.load_state_dict(ours.state_dict())
    return ours, loops.Loop(loop, loops.STEPS[cell.name])
