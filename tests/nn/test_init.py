"""Ways to start the weights: each has the property that it is named for."""

from __future__ import annotations

import pytest
import torch

from recollect import cells, nn
from recollect.errors import InputError
from tolerances import assert_bits

HIDDEN = 7
EYE = torch.eye(HIDDEN, dtype=torch.float64)


def make(cell, **options):
    torch.manual_seed(0)
    return nn.Recurrent(cell, 3, HIDDEN, num_layers=2, bidirectional=True, dtype=torch.float64, **options)


def named(layer, prefix):
    found = [each for name, each in layer.named_parameters() if name.startswith(prefix)]
    assert len(found) == 4
    return found


@pytest.mark.parametrize("gain", [1.0, 0.5])
@pytest.mark.parametrize("name", cells.__all__)
def test_orthogonal_recurrent_weights(name, gain):
    layer = make(cells.by_name(name))
    others = {n: each.clone() for n, each in layer.named_parameters() if not n.startswith("weight_hh")}
    assert nn.init.orthogonal_(layer, gain) is layer
    for weight in named(layer, "weight_hh"):
        for block in weight.split(HIDDEN):
            torch.testing.assert_close(block.T @ block, gain**2 * EYE, rtol=0, atol=1e-12)
    for other, value in others.items():
        assert_bits(getattr(layer, other), value, other)


def test_forget_bias():
    layer = make(cells.lstm)
    before = {n: each.clone() for n, each in layer.named_parameters()}
    assert nn.init.forget_bias_(layer, 1.5) is layer
    forget = slice(HIDDEN, 2 * HIDDEN)
    for each in named(layer, "bias_ih"):
        assert (each[forget] == 1.5).all()
    for each in named(layer, "bias_hh"):
        assert (each[forget] == 0).all()
    for name, each in layer.named_parameters():
        rest = torch.ones(len(each), dtype=torch.bool)
        if name.startswith("bias"):
            rest[forget] = False
        assert_bits(each[rest], before[name][rest], name)


def test_a_forget_gate_in_another_place():
    layer = nn.init.forget_bias_(make(cells.cifg_lstm))
    for each in named(layer, "bias_ih"):
        assert (each[:HIDDEN] == 1).all()
        assert (each[HIDDEN:] != 1).all()


@pytest.mark.parametrize("layer", [lambda: make(cells.gru), lambda: make(cells.lstm, bias=False)])
def test_a_layer_without_a_forget_bias(layer):
    with pytest.raises(InputError, match="no forget-gate bias"):
        nn.init.forget_bias_(layer())


def test_identity_keeps_the_state_without_input():
    layer = nn.init.identity_(nn.RNN(3, HIDDEN, nonlinearity="relu", dtype=torch.float64))
    assert_bits(layer.weight_hh_l0, EYE)
    assert not layer.bias_ih_l0.any()
    assert not layer.bias_hh_l0.any()
    h = torch.rand(1, 2, HIDDEN, dtype=torch.float64)
    _, final = layer(torch.zeros(50, 2, 3, dtype=torch.float64), h)
    assert_bits(final, h)


def test_a_scaled_identity_for_each_gate():
    layer = nn.init.identity_(make(cells.lstm, bias=False), 0.25)
    for weight in named(layer, "weight_hh"):
        for block in weight.split(HIDDEN):
            assert_bits(block, 0.25 * EYE)


@pytest.mark.parametrize("initialise", [nn.init.orthogonal_, nn.init.forget_bias_, nn.init.identity_])
def test_other_layers_are_refused_with_the_way_out(initialise):
    with pytest.raises(InputError, match=r"recollect\.convert"):
        initialise(torch.nn.LSTM(3, 5))


@pytest.mark.parametrize("initialise", [nn.init.orthogonal_, nn.init.forget_bias_, nn.init.identity_])
def test_parameters_stay_trainable_leaves(initialise):
    layer = initialise(make(cells.lstm))
    layer(torch.zeros(2, 1, 3, dtype=torch.float64))[0].sum().backward()
    assert all(each.is_leaf and each.grad is not None for each in layer.parameters())


def test_reset_parameters_draws_torchs_numbers_anew():
    ours, theirs = nn.GRU(3, HIDDEN, num_layers=2), torch.nn.GRU(3, HIDDEN, num_layers=2)
    for layer in (ours, theirs):
        torch.manual_seed(3)
        layer.reset_parameters()
    for mine, true in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_bits(mine, true)
