"""A remedy is tried on a copy: the same training with it and without it, and nothing of the user's changes."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import recollect
from last_step import LastStep
from recollect.diagnosis import Finding, prove
from recollect.errors import InputError
from recollect.nn import init


@pytest.fixture
def data():
    x = torch.randn(60, 32, 2, generator=torch.Generator().manual_seed(0))
    return x, 5 * x[:30, :, :1].mean(0)  # what came in the first half


@pytest.fixture
def forgetful():
    torch.manual_seed(1)
    return LastStep(nn.LSTM(2, 12))


def test_the_remedy_for_vanishing_helps_to_learn_what_came_long_ago(forgetful, data):
    proof = prove(forgetful, *data)
    assert proof.finding.kind == "vanishing"
    assert proof.helps
    assert proof.gone
    assert proof.remedied.diagnosis.gradient_horizon > proof.without.diagnosis.gradient_horizon
    said = str(proof)
    assert said.startswith("The remedy for vanishing helps:")
    for word in ("as it is", "with the remedy", "loss after 50 steps", "of 60 steps"):
        assert word in said


def test_clipping_keeps_a_training_alive_that_breaks_down_without(data):
    torch.manual_seed(0)
    model = LastStep(init.identity_(recollect.nn.RNN(2, 12, nonlinearity="relu"), 1.2))
    proof = prove(model, *data, steps=10)
    assert proof.finding.kind == "exploding"
    assert proof.without.reached == math.inf
    assert proof.without.diagnosis is None
    assert "broke down" in str(proof)
    assert len(proof.remedied.losses) == 11
    assert proof.remedied.updates.max() <= 0.1 * (1 + 1e-12)  # learning rate 0.1, clipped to 1
    assert proof.remedied.norms.max() > 100
    assert proof.helps


def test_the_training_is_gradient_descent(forgetful, data):
    finding = Finding("exploding", "error", "-", "loss.backward()\noptimizer.step()", "step")
    proof = prove(forgetful, *data, finding=finding, steps=3)
    by_hand, losses = copy.deepcopy(forgetful).double(), []
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    x, y = (each.double() for each in data)
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(by_hand(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(proof.without.losses, losses, rtol=1e-9)
    np.testing.assert_array_equal(proof.without.losses, proof.remedied.losses)


def test_a_remedy_of_the_data(forgetful, data):
    x, y = data
    found = recollect.diagnose(forgetful, 100 * x, y).findings
    (finding,) = [each for each in found if each.kind == "input_scale"]
    proof = prove(forgetful, 100 * x, y, finding=finding, steps=2)
    assert proof.gone
    assert not np.allclose(proof.without.losses[0], proof.remedied.losses[0])


def test_nothing_of_the_users_changes(forgetful, data):
    before = {name: value.clone() for name, value in forgetful.state_dict().items()}
    state, modes = torch.get_rng_state(), [module.training for module in forgetful.modules()]
    steps = []
    first = prove(forgetful, *data, steps=4, on_step=lambda: steps.append(1))
    assert len(steps) == 8
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in forgetful.modules()] == modes
    for name, value in forgetful.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in forgetful.parameters())
    again = prove(forgetful, *data, steps=4)
    np.testing.assert_array_equal(first.remedied.losses, again.remedied.losses)


def test_a_remedy_that_draws_weights_repeats_with_a_seed(data):
    torch.manual_seed(0)
    model = LastStep(nn.RNN(2, 12))
    model.rnn.weight_hh_l0.data.mul_(0.1)
    losses = [prove(model, *data, steps=2, seed=seed).remedied.losses for seed in (0, 0, 1)]
    np.testing.assert_array_equal(losses[0], losses[1])
    assert not np.array_equal(losses[0], losses[2])


class TestBadInput:
    def test_no_loss(self, forgetful, data):
        with pytest.raises(InputError, match=r"needs a loss.*pass target="):
            prove(forgetful, data[0], None)

    def test_nothing_found(self, data):
        torch.manual_seed(0)
        model = LastStep(init.forget_bias_(recollect.nn.LSTM(2, 12), 4.0))
        with pytest.raises(InputError, match=r"no remedy to try.*healthy"):
            prove(model, *data)

    def test_a_remedy_that_is_a_loop(self, forgetful, data):
        found = recollect.diagnose(forgetful, *data, window=3).findings
        (finding,) = [each for each in found if each.kind == "window_too_short"]
        with pytest.raises(InputError, match="window_too_short, whose remedy is the training loop itself"):
            prove(forgetful, *data, finding=finding)
