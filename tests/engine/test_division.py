"""However a call is divided among threads, by rows or by units, it gives the same bits."""

from __future__ import annotations

import pytest
import torch

from forgetting import forget_problems
from recollect import cells, nn
from recollect.engine import autograd, calls
from recollect.engine.llvm.division import Division, divide
from recollect.engine.llvm.problem import Problem
from recollect.engine.llvm.team import team
from recollect.engine.plan import Variant

DIVISIONS = [
    Division(1, False), Division(2, False), Division(3, False), Division(2, True), Division(3, True),
    Division(2, True, rows_back=True), Division(1, False, beside=True),
]  # fmt: skip


@pytest.fixture
def under(monkeypatch):
    """Call a function with a division forced."""

    def call(division, function):
        monkeypatch.setattr(calls, "divide", lambda *_: division)
        forget_problems()
        return function()

    yield call
    forget_problems()


@pytest.mark.parametrize(("name", "bidirectional"), [("lstm", True), ("gru", True), ("slstm", True), ("lstm", False)])
@pytest.mark.parametrize("sizes", [(1, 3, 5, 7), (37, 40, 65, 11), (130, 9, 12, 3)])
def test_outputs_and_gradients_keep_every_bit(under, name, bidirectional, sizes):
    batch, inputs, hidden, steps = sizes
    torch.manual_seed(0)
    layer = nn.Recurrent(getattr(cells, name), inputs, hidden, bidirectional=bidirectional)
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    lengths, resets = torch.randint(0, steps + 1, (batch,)), torch.rand(steps, batch) < 0.2

    def results():
        found = []
        for options in ({}, {"lengths": lengths}, {"resets": resets, "lengths": lengths}):
            y, state = layer(x, **options)
            state = state if isinstance(state, tuple) else (state,)
            loss = y.square().sum() + sum(each.sum() for each in state)
            found += [y, *state, *torch.autograd.grad(loss, [x, *layer.parameters()])]
            with torch.no_grad():
                found.append(layer(x, **options)[0])
        return found

    expected = under(DIVISIONS[0], results)
    for division in DIVISIONS[1:]:
        for found, wanted in zip(under(division, results), expected, strict=True):
            assert torch.equal(found, wanted), division


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("division", [Division(1, False), Division(2, True)])
def test_weights_that_are_fetched_ahead_keep_every_bit(under, monkeypatch, name, division):
    torch.manual_seed(0)
    layer = nn.Recurrent(getattr(cells, name), 300, 150)
    x = torch.randn(3, 37, 300, requires_grad=True)

    def results(wanted):
        monkeypatch.setattr(Problem, "_fetching", lambda *_: wanted)
        forget_problems()
        y, _ = layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    plain = under(division, lambda: results(False))
    fetching = under(division, lambda: results(True))
    forget_problems()
    assert all(map(torch.equal, fetching, plain))


def test_weights_are_fetched_ahead_where_they_are_many():
    kernels = calls.kernels_of(cells.lstm, torch.float32, Variant())

    def ahead(batch, inputs, hidden, division):
        made = Problem(kernels, inputs, hidden, batch, False, 8, False, division, team())
        ways = (
            kernels.forward(made.forward_tiling, save=True, fetching=True),
            kernels.backward(made.tiling, fetching=True),
        )
        return [one.address == way.address for one, way in zip((made.train, made.backward), ways, strict=True)]

    assert ahead(16, 256, 1024, Division(2, True)) == [True, True]
    assert ahead(1, 256, 1024, Division(2, True)) == [False, False]  # the one block of rows streams them itself
    assert ahead(64, 64, 256, Division(2, False)) == [False, False]


def test_units_are_divided_where_weights_are_large_and_rows_few():
    kernels = calls.kernels_of(cells.lstm, torch.float32, Variant())

    def of(batch, inputs, hidden, steps=100, threads=2, directions=1):
        return divide(kernels, inputs, hidden, batch, batch * steps, steps, threads, directions)

    assert of(1, 16, 32) == of(1, 16, 32, steps=5) == Division(1, False)  # too little to wake anybody
    assert of(1, 64, 256) == of(16, 256, 1024) == Division(2, True)
    assert of(64, 64, 256) == of(16, 16, 64) == Division(2, False)
    assert of(6, 16, 64) == Division(1, False)
    assert of(64, 64, 256, threads=1) == of(1, 64, 256, threads=1) == Division(1, False)
    assert of(64, 64, 256, threads=3) == Division(3, False)
    assert of(8, 128, 128) == Division(2, True)
    assert of(12, 128, 128) == of(23, 64, 256) == Division(2, True, rows_back=True)
    assert of(24, 128, 128) == of(24, 64, 256) == Division(2, False)
    assert of(24, 256, 1024) == Division(2, True)

    # Two directions run side by side where one of them would be alone, or would have to talk to itself.
    beside = Division(1, False, beside=True)
    assert of(6, 16, 64, directions=2) == of(1, 64, 256, directions=2) == beside
    assert of(1, 16, 32, steps=2000, directions=2) == beside
    assert of(1, 16, 32, steps=5, directions=2) == Division(1, False)
    assert of(64, 64, 256, directions=2) == Division(2, False)
    assert of(1, 64, 256, threads=4, directions=2) == Division(4, True)
    assert of(6, 16, 64, threads=1, directions=2) == Division(1, False)


@pytest.mark.parametrize("bits", [torch.float32, torch.float64])
def test_directions_side_by_side_are_each_what_they_are_alone(bits):
    """As two layers, of which one reads the sequence from its end."""
    torch.manual_seed(0)
    both = nn.Recurrent(cells.lstm, 16, 64, bidirectional=True, dtype=bits)
    x = torch.randn(120, 2, 16, dtype=bits, requires_grad=True)
    direction = calls.prepare  # what the layer of two directions asks for
    problems = []

    def seen(*arguments):
        found = direction(*arguments)
        problems.extend(found[0])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autograd, "prepare", seen)
        y, _ = both(x)
    assert [problem.division.beside for problem in problems] == [torch.get_num_threads() > 1] * 2
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=bits).view_as(y)).sum()
    gradients = dict(
        zip(["x", *dict(both.named_parameters())], torch.autograd.grad(loss, [x, *both.parameters()]), strict=True)
    )
    weights = torch.linspace(-1, 1, y.numel(), dtype=bits).view_as(y).split(64, 2)
    total = torch.zeros_like(x)
    for place, suffix in enumerate(("", "_reverse")):
        one = nn.Recurrent(cells.lstm, 16, 64, dtype=bits)
        for name, parameter in one.named_parameters():
            parameter.data.copy_(getattr(both, name + suffix))
        turned = (lambda each: each.flip(0)) if place else (lambda each: each)
        mine = x.detach().clone().requires_grad_()
        own = turned(one(turned(mine))[0])
        assert torch.equal(own, y[..., 64 * place : 64 * (place + 1)])
        (own * weights[place]).sum().backward()
        total += mine.grad
        for name, parameter in one.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name + suffix])
    torch.testing.assert_close(total, gradients["x"])
