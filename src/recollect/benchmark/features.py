"""What our own features cost: other cells, unequal lengths, and what a call may add to the plain layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import recollect
from recollect import cells
from recollect.benchmark.layers import CELLS, MODES, SHAPES, label
from recollect.benchmark.parity import Run, difference, difference_from_reference, infer, results, train
from recollect.benchmark.subject import PASSES, Mode, Shape, Subject, Trial, multiply_adds

LENGTHS = Shape(64, 64, 128, 100)
OPTIONS = Shape(64, 128, 128, 100)
RESET_RATE = 0.03  # of all steps begin a new episode
DROPPED = 0.1  # zoneout's and recurrent dropout's probability


def other_cells() -> list[Subject]:
    """Training of cells that nobody wrote a kernel for, per multiply-add, over our LSTM's."""
    return [
        Subject(label(cell), "our LSTM", "training", "cells", SHAPES, partial(_cell, cell), unit="multiply-add")
        for cell in CELLS
    ]


def unequal_lengths(full: bool) -> list[Subject]:
    """Lengths uniform in [1, T]: per valid step over our dense time per step, and against torch.nn's."""
    shapes = tuple(LENGTHS._replace(steps=steps) for steps in ((100, 1000, 4000) if full else (100,)))
    common = {"section": "lengths", "shapes": shapes, "unit": "valid step"}
    found = []
    for mode in MODES:
        for order in ("sorted", "unsorted"):
            make = partial(_lengths, order == "sorted", mode)
            found.append(Subject(f"{order} lengths", "dense LSTM", mode, prepare=make, **common))
        found.append(Subject("packed", "torch.nn", mode, prepare=partial(_packed, mode), **common))
    return found


def options() -> list[Subject]:
    """What a call or a layer may add, over the plain LSTM."""
    makers: dict[str, tuple[Callable[[], dict], Sequence[Mode]]] = {
        "resets=": (dict, MODES),
        "return_states": (dict, MODES),
        "recurrent_dropout": (lambda: {"recurrent_dropout": DROPPED}, ("training",)),  # nothing in eval mode
        "zoneout": (lambda: {"zoneout": DROPPED}, MODES),
    }
    return [
        Subject(name, "plain LSTM", mode, "options", (OPTIONS,), partial(_option, name, arguments(), mode))
        for name, (arguments, modes) in makers.items()
        for mode in modes
    ]


def _cell(cell: cells.Cell, shape: Shape) -> Trial:
    batch, inputs, hidden, steps = shape
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    grad = torch.randn(steps, batch, hidden)
    calls, apart = [], []
    for each in (cell, cells.lstm):
        layer = recollect.nn.Recurrent(each, inputs, hidden)
        run, leaves = _outputs(layer, x), [x, *layer.parameters()]
        apart.append(difference_from_reference(run, leaves, [grad]))
        calls.append(train(run, leaves, [grad]))
    ours, plain = (multiply_adds(len(each.gates), shape) for each in (cell, cells.lstm))
    return Trial(calls[0], calls[1], max(apart), ours * PASSES["training"], (ours, plain))


def _lengths(in_order: bool, mode: Mode, shape: Shape) -> Trial:
    batch, inputs, hidden, steps = shape
    lengths = _draw(shape)
    lengths = lengths.sort(descending=True).values if in_order else lengths
    layer = recollect.nn.LSTM(inputs, hidden)
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    grad = torch.randn(steps, batch, hidden)
    leaves = [x, *layer.parameters()]
    ragged, dense = _outputs(layer, x, lengths=lengths), _outputs(layer, x)
    apart = difference_from_reference(ragged, leaves, [grad])
    ours, plain = (_call(mode, run, leaves, [grad]) for run in (ragged, dense))
    valid = int(lengths.sum())
    products = multiply_adds(4, shape, valid) * PASSES[mode]
    return Trial(ours, plain, apart, products, (valid, batch * steps))


def _packed(mode: Mode, shape: Shape) -> Trial:
    """Both get the same PackedSequence, packed beforehand."""
    ours, peer = recollect.nn.LSTM(shape.inputs, shape.hidden), nn.LSTM(shape.inputs, shape.hidden)
    ours.load_state_dict(peer.state_dict())
    lengths = _draw(shape)
    packed = pack_padded_sequence(torch.randn(shape.steps, shape.batch, shape.inputs), lengths, enforce_sorted=False)
    x = packed.data.requires_grad_()
    packed = PackedSequence(x, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    grad = torch.randn(x.shape[0], shape.hidden)
    sides = [(_rows(module, packed), [x, *module.parameters()]) for module in (ours, peer)]
    apart = difference(*(results(run, leaves, [grad]) for run, leaves in sides))
    first, second = (_call(mode, run, leaves, [grad]) for run, leaves in sides)
    valid = int(lengths.sum())
    return Trial(first, second, apart, multiply_adds(4, shape, valid) * PASSES[mode], (valid, valid))


def _option(name: str, arguments: dict, mode: Mode, shape: Shape) -> Trial:
    batch, inputs, hidden, steps = shape
    training = mode == "training"
    plain = recollect.nn.LSTM(inputs, hidden).train(training)
    layer = recollect.nn.LSTM(inputs, hidden, **arguments).train(training)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    grads = [torch.randn(steps, batch, hidden)]
    if name == "return_states":
        run, sent = _states(layer, x), grads * 2  # a gradient for every c as well, or nobody would ask for them
    else:
        keywords = {"resets": torch.rand(steps, batch) < RESET_RATE} if name == "resets=" else {}
        run, sent = _outputs(layer, x, **keywords), grads
    leaves = [x, *layer.parameters()]
    apart = difference_from_reference(run, leaves, sent)
    first = _call(mode, run, leaves, sent)
    second = _call(mode, _outputs(plain, x), [x, *plain.parameters()], grads)
    return Trial(first, second, apart, multiply_adds(4, shape) * PASSES[mode], (steps, steps))


def _draw(shape: Shape) -> torch.Tensor:
    return torch.randint(1, shape.steps + 1, (shape.batch,))


def _call(mode: Mode, run: Run, leaves: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> Callable[[], object]:
    return infer(run) if mode == "inference" else train(run, leaves, grads)


def _outputs(layer: nn.Module, x: torch.Tensor, **keywords: torch.Tensor) -> Run:
    return lambda: (layer(x, **keywords)[0],)


def _rows(layer: nn.Module, packed: PackedSequence) -> Run:
    return lambda: (layer(packed)[0].data,)


def _states(layer: nn.Module, x: torch.Tensor) -> Run:
    return lambda: layer(x, return_states=True)[2]
