"""Inputs that are multiplied ahead of the steps give the bits that they give step by step."""

from __future__ import annotations

import pytest
import torch

from forgetting import forget_problems
from recollect import cells, nn
from recollect.engine import calls, wavefront
from recollect.engine.llvm.division import Division
from recollect.engine.llvm.problem import Problem
from recollect.engine.llvm.team import team
from recollect.engine.plan import Variant
from tolerances import assert_bits

STEPS, BATCH, INPUTS, HIDDEN = 11, 5, 3, 69


@pytest.fixture
def each_way(monkeypatch):
    """Call a function with no step multiplied ahead, then with chunks of some; returns what it returns, flat."""

    def call(function, division=None):
        found = []
        if division:
            monkeypatch.setattr(calls, "divide", lambda *_: division)
        for steps in (0, 1, 3, 64):
            monkeypatch.setattr(Problem, "_projected_steps", lambda self, _, steps=steps: min(steps, self._longest))
            forget_problems()
            torch.manual_seed(1)
            found.append(function())
        return found

    yield call
    forget_problems()


def assert_same(on, off):
    for found in on:
        for one, other in zip(found, off, strict=True):
            assert_bits(one, other)


def results(layer, x, **options):
    """What a layer returns in inference and in training, and all gradients of a loss on all of it."""
    with torch.no_grad():
        inferred = layer(x, **options)[0]
    torch.manual_seed(2)
    y, state = layer(x, **options)
    states = state if isinstance(state, tuple) else (state,)
    loss = y.square().sum() + sum(each.sum() for each in states)
    return [inferred, y, *states, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@pytest.mark.parametrize("name", ["lstm", "gru", "slstm"])
@pytest.mark.parametrize("division", [Division(1, False), Division(2, True), Division(3, True)], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_bit_stays_whatever_the_rows(each_way, name, division, batch_first):
    torch.manual_seed(0)
    layer = nn.Recurrent(getattr(cells, name), INPUTS, HIDDEN, bidirectional=True, batch_first=batch_first)
    shape = (BATCH, STEPS) if batch_first else (STEPS, BATCH)
    x = torch.randn(*shape, INPUTS, requires_grad=True)
    lengths, resets = torch.tensor([4, 0, 11, 1, 4]), torch.rand(shape) < 0.3

    def all_results():
        options = ({}, {"lengths": lengths}, {"resets": resets}, {"lengths": lengths, "resets": resets})
        return [each for given in options for each in results(layer, x, **given)]

    off, *on = each_way(all_results, division)
    assert not torch.equal(off[0][:, 0], off[0][:, 1])  # rows, and steps, that are taken for each other show
    assert_same(on, off)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sizes", "fetching"), [((2, 700, 150), False), ((7, 700, 150), True), ((7, 40, 1), False)])
def test_every_bit_stays_whatever_the_sizes(each_way, monkeypatch, dtype, sizes, fetching):
    """Inputs in several pieces; units in several groups, of which the last is not whole; weights fetched ahead."""
    monkeypatch.setattr(Problem, "_fetching", lambda *_: fetching)
    batch, inputs, hidden = sizes
    torch.manual_seed(0)
    layer = nn.GRU(inputs, hidden, dtype=dtype)
    x = torch.randn(STEPS, batch, inputs, dtype=dtype, requires_grad=True)
    off, *on = each_way(lambda: results(layer, x), Division(2, True))
    assert_same(on, off)


def test_every_bit_stays_with_zoneout_and_dropout(each_way):
    torch.manual_seed(0)
    layer = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, zoneout=0.3, recurrent_dropout=0.5, bidirectional=True)
    x = torch.randn(STEPS, BATCH, INPUTS, requires_grad=True)
    off, *on = each_way(lambda: results(layer, x))
    assert_same(on, off)


def test_every_bit_stays_where_a_call_takes_some_of_the_steps(each_way, monkeypatch):
    """Layers a chunk of steps apart: the rows behind it are not there yet."""
    monkeypatch.setattr(wavefront, "_CHUNKS", 3)
    monkeypatch.setattr(wavefront, "_FEWEST_STEPS", 4)
    monkeypatch.setattr(wavefront, "pays", lambda *_: True)
    torch.manual_seed(0)
    layer = nn.Recurrent(cells.lstm, INPUTS, HIDDEN, num_layers=3)
    x = torch.randn(STEPS, BATCH, INPUTS, requires_grad=True)
    lengths = torch.tensor([4, 2, 11, 1, 4])
    off, *on = each_way(lambda: results(layer, x) + results(layer, x, lengths=lengths))
    assert_same(on, off)


def test_inputs_are_multiplied_ahead_where_their_weights_take_the_time():
    kernels = calls.kernels_of(cells.lstm, torch.float32, Variant())

    def steps(batch, inputs, hidden, division, longest=128):
        made = Problem(kernels, inputs, hidden, batch, False, longest, False, division, team())
        infer, train = (way.prepared({})[way.slot("projected_steps")] for way in (made.infer, made.train))
        assert infer == train
        return infer

    for division in (Division(1, False), Division(2, True)):
        assert steps(1, 64, 256, division) == 36
        assert steps(1, 64, 256, division, longest=8) == 8
        assert steps(2, 256, 256, division) == 18
        assert steps(2, 64, 256, division) == 0  # two rows for each load of a weight, few of which are the inputs'
        assert steps(1, 1, 64, division) == steps(32, 256, 64, division) == 0
        assert steps(1, 64, 256, division, longest=1) == 0  # no other step is known
    assert steps(2, 256, 256, Division(2, False)) == 0  # threads that have rows of their own
