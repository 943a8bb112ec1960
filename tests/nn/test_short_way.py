"""A call that adds nothing to one layer in one direction takes a shorter way, and nobody can tell."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from recollect import cells, nn
from recollect.engine.autograd import obstacle
from recollect.nn import Recurrent


@pytest.fixture
def long_way(monkeypatch):
    """Call a function with the short way closed."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(Recurrent, "_run_plain", lambda self, x, lengths=None: None)
            return function()

    return call


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "peephole_lstm"])
@pytest.mark.parametrize("hidden", [7, 16])
@pytest.mark.parametrize("lengths", [None, [3, 2, 3, 1], [2, 2, 1, 0], [2, 2, 2, 2], [3, 3, 3, 3], (3, 3, 2, 1)])
def test_results_and_gradients_are_the_same(long_way, name, batch_first, bias, hidden, lengths):
    layer = Recurrent(getattr(cells, name), 5, hidden, batch_first=batch_first, bias=bias)
    x = torch.randn(4, 3, 5) if batch_first else torch.randn(3, 4, 5)
    x.requires_grad_()

    def results():
        y, state = layer(x, lengths=lengths)
        final = state if isinstance(state, tuple) else (state,)
        with torch.inference_mode():
            inferred, state_inferred = layer(x, lengths=lengths)
            state_inferred = state_inferred if isinstance(state_inferred, tuple) else (state_inferred,)
            inferred = [each.clone() for each in (inferred, *state_inferred)]
        # Of the output alone, of final states alone, and of both: each is a case of its own.
        losses = [y.sum(), sum(each.square().sum() for each in final)]
        losses.append(losses[0] * losses[1])
        leaves = [x, *layer.parameters()]
        grads = [grad for loss in losses for grad in torch.autograd.grad(loss, leaves, retain_graph=True)]
        return type(state), [y, *final, *inferred, *grads]

    assert layer._run_plain(x, lengths) is not None
    (kind, short), (same_kind, long) = results(), long_way(results)
    assert kind is same_kind
    assert all(map(torch.equal, short, long))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_layers": 2},
        {"bidirectional": True},
        {"proj_size": 3},
        {"learned_initial_state": True},
        {"checkpoint": 2},
        {"zoneout": 0.1},
        {"recurrent_dropout": 0.1},
    ],
)
def test_whatever_is_added_goes_the_long_way(settings):
    assert nn.LSTM(5, 7, **settings)._run_plain(torch.randn(3, 4, 5)) is None


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 5),
        torch.randn(3, 4, 6),
        torch.randn(0, 4, 5),
        torch.randn(3, 0, 5),
        torch.randn(3, 4, 5, dtype=torch.float64),
        torch.randint(3, (3, 4, 5)),
        torch.randn(3, 4, 5, device="meta"),
        [[1.0]],
    ],
)
def test_so_does_whatever_is_unusual(x):
    assert nn.LSTM(5, 7)._run_plain(x) is None


def test_only_numbers_in_memory_are_served():
    seen = []

    def look(x):
        seen.append(obstacle(x))
        return x * 1.0

    x = torch.randn(3, 4)
    for kind in (torch.float32, torch.float64, torch.float16, torch.int64):
        look(x.to(kind))
    look(torch.randn(3, device="meta"))
    torch.func.vmap(look)(x)
    with forward_ad.dual_level():
        look(x)
    assert [why is None for why in seen] == [True, True, *[False] * 5]
