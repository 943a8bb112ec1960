"""However a call is divided among threads, by rows or by units, it gives the same bits."""

from __future__ import annotations

import pytest
import torch

from recollect import cells, nn
from recollect.engine import calls
from recollect.engine.calls import kept_problem
from recollect.engine.llvm.division import Division, divide
from recollect.engine.plan import Variant

DIVISIONS = [Division(1, False), Division(2, False), Division(3, False), Division(2, True), Division(3, True)]


@pytest.fixture
def under(monkeypatch):
    """Call a function with a division forced."""

    def call(division, function):
        monkeypatch.setattr(calls, "divide", lambda *_: division)
        kept_problem.cache_clear()
        return function()

    yield call
    kept_problem.cache_clear()


@pytest.mark.parametrize("name", ["lstm", "gru", "slstm"])
@pytest.mark.parametrize("sizes", [(1, 3, 5, 7), (37, 40, 65, 11), (130, 9, 12, 3)])
def test_outputs_and_gradients_keep_every_bit(under, name, sizes):
    batch, inputs, hidden, steps = sizes
    torch.manual_seed(0)
    layer = nn.Recurrent(getattr(cells, name), inputs, hidden, bidirectional=True)
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


def test_units_are_divided_where_weights_are_large_and_rows_few():
    kernels = calls.kernels_of(cells.lstm, torch.float32, Variant())

    def of(batch, inputs, hidden, steps=100, threads=2):
        return divide(kernels, inputs, hidden, batch, batch * steps, steps, threads)

    assert of(1, 16, 32) == of(1, 16, 32, steps=5) == Division(1, False)  # too little to wake anybody
    assert of(1, 64, 256) == of(16, 256, 1024) == Division(2, True)
    assert of(64, 64, 256) == of(16, 16, 64) == Division(2, False)
    assert of(6, 16, 64) == Division(1, False)
    assert of(64, 64, 256, threads=1) == of(1, 64, 256, threads=1) == Division(1, False)
    assert of(64, 64, 256, threads=3) == Division(3, False)
