"""Where a gradient goes bad on its way back: the layer, and the last time step, which it reaches first."""

from __future__ import annotations

import math

import torch
from faulty_models import ROW, STEP, B, Loop, Net, T, cell_layers, found, layers, place
from torch import nn


def steep(make, weight=1e10, **arguments):
    """All zeros forward; backward the gradient grows by the recurrent weight at each step."""
    rnn = make(1, 1, **arguments)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            parameter.fill_(weight if "weight_hh" in name else 0.0)
            if "weight_ih" in name:
                parameter.fill_(1.0)
    return rnn


def first_overflow(rnn, x, loss):
    """By hand: the latest time step at which the input's gradient is not finite."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(rnn(x)), x)
    bad = ~torch.isfinite(gradient)
    assert 0 < int(bad.sum()) < bad.numel() / 2
    return int(bad.nonzero().max(0).values[1])


@layers
def test_a_gradient_that_explodes_within_a_layer_names_the_last_finite_step_it_came_from(make):
    rnn = steep(make, batch_first=True)
    x = torch.zeros(B, T, 1)
    step = first_overflow(rnn, x, lambda out: out[0][ROW, -1].sum())
    assert 0 < step < T - 2
    model = Net(rnn)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    culprit = found(model, x, loss=lambda output, y: output[ROW, -1].sum())
    assert (culprit.layer, culprit.place) == ("rnn", place(step, ROW))
    assert "the gradient on its way back through layer 'rnn'" in str(culprit)
    # Also where the loss is taken in the middle, and of rows that lie the other way.
    model.rnn = steep(make)
    culprit = found(model, torch.zeros(T, B, 1), loss=lambda output, y: output[6, ROW].sum())
    assert (culprit.layer, culprit.place) == ("rnn", place(step - (T - 1 - 6), ROW))


@cell_layers
def test_a_gradient_that_explodes_from_call_to_call(make):
    cell = steep(make)
    model, x = Loop(cell), torch.zeros(B, 20, 1)
    tracked = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(tracked)[ROW, -1].sum(), tracked)
    last = int((~torch.isfinite(gradient[ROW, :, 0])).nonzero().max())
    culprit = found(model, x, loss=lambda output, y: output[ROW, -1].sum())
    assert culprit.layer == "cell"
    assert culprit.place.row == ROW
    # The state's gradient overflows one step before the input's, on the way back: it goes through weight_hh.
    assert culprit.place.step == last + 1


def test_the_reverse_direction_explodes_the_other_way():
    rnn = steep(nn.RNN, batch_first=True, bidirectional=True)
    with torch.no_grad():
        rnn.weight_hh_l0.zero_()
    model = Net(rnn)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    culprit = found(model, torch.zeros(B, T, 1), loss=lambda output, y: output[ROW, 1].sum())
    assert (culprit.layer, culprit.place) == ("rnn", place(1 + 4, ROW))


def test_a_weights_gradient_alone():
    # 1e20 in and 1e19 back are finite, and so is what goes on back, 1e19 * 1e-30; their product is not.
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with torch.no_grad():
        for layer, weight in zip(model, (1.0, 1e-30), strict=True):
            layer.weight.fill_(weight), layer.bias.zero_()
    culprit = found(model, torch.full((B, 1), 1e20), loss=lambda output, y: (output * 1e19).sum())
    assert (culprit.layer, culprit.place) == ("1", place(None))
    assert str(culprit) == "the gradient of weight '1.weight' is inf"


@layers
def test_an_infinite_input_that_the_layer_saturates_at_is_still_the_input(make):
    # Forward it is hidden by tanh and sigmoid; the gradient of weight_ih is 0 * inf.
    model = Net(make(1, 3, batch_first=True))
    with torch.no_grad():
        model.rnn.weight_ih_l0.fill_(1.0)
    x = torch.randn(B, T, 1)
    x[ROW, STEP] = math.inf
    y = model.rnn(x)[0]
    assert torch.isfinite(y).all()
    assert str(found(model, x)) == "the input x is inf at time step 5, row 2 (counted from 0)"
    assert found(model.rnn, x, loss=lambda output, y: output[0].mean()).place == place(STEP, ROW)

    class Doubled(nn.Module):
        """Makes the infinity itself."""

        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net(x * 3e38)

    culprit = found(Doubled(), x.clamp(-0.1, 0.1).masked_fill(x.isinf(), 2.0))
    assert (culprit.layer, culprit.place, culprit.value) == ("", place(STEP, ROW), "inf")


def test_a_loss_whose_slope_is_infinite():
    model = nn.Linear(1, 1)
    y = torch.zeros(B, 1)

    def loss(output, y):
        return (output[ROW] * 0).abs().sqrt().sum()

    culprit = found(model, torch.ones(B, 1), y, loss)
    assert culprit.layer is None
    assert culprit.place.row == ROW
    assert "gradient of the loss with respect to the model's output" in str(culprit)
    assert "sqrt(0)" in culprit.remedy


def test_code_between_layers_whose_slope_is_infinite():
    model = Net(nn.LSTM(2, 3, batch_first=True))

    def between(h):
        keep = torch.ones_like(h)
        keep[ROW, STEP] = 0
        return (h * keep).abs().sqrt() + h

    model.between = between
    culprit = found(model, torch.randn(B, T, 2))
    assert (culprit.layer, culprit.place) == ("", place(STEP, ROW))
    assert "the model (Net) computes itself, after layer 'rnn' (LSTM)" in str(culprit)
