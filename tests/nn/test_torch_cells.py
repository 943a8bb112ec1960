"""The cells are torch.nn's: parameters, returns and gradients."""

from __future__ import annotations

import pytest
import torch

from recollect import nn
from recollect.errors import InputError
from tolerances import GRADIENT, VALUE, assert_bits, assert_equal

KINDS = {
    "RNNCell": {},
    "RNNCell relu": {"nonlinearity": "relu"},
    "LSTMCell": {},
    "GRUCell": {},
    "GRUCell without bias": {"bias": False},
}


def pair(name, **more):
    kind, arguments = name.split()[0], {**KINDS[name], **more}
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(3, 5, **arguments)
    torch.manual_seed(0)
    return getattr(nn, kind)(3, 5, **arguments), theirs


def states(name, *batch, dtype=torch.float32):
    made = [torch.randn(*batch, 5, dtype=dtype, requires_grad=True) for _ in range(1 + name.startswith("LSTM"))]
    return made[0] if len(made) == 1 else tuple(made)


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch", [(4,), ()], ids=["batch", "one sequence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_torchs(name, batch, dtype):
    ours, theirs = pair(name, dtype=dtype)
    x, hx = torch.randn(*batch, 3, dtype=dtype, requires_grad=True), states(name, *batch, dtype=dtype)
    results = []
    for module in (ours, theirs):
        new = flat(module(x, hx))
        loss = sum((each * (2 + place)).square().sum() for place, each in enumerate(new))
        results.append((new, torch.autograd.grad(loss, [x, *flat(hx), *module.parameters()])))
    (new, gradients), (true, true_gradients) = results
    assert [each.shape for each in new] == [each.shape for each in true]
    for each, expected in zip(new, true, strict=True):
        assert_equal(each, expected, VALUE)
    for each, expected in zip(gradients, true_gradients, strict=True):
        assert_equal(each, expected, GRADIENT)


@pytest.mark.parametrize("name", KINDS)
def test_parameters_are_torchs(name):
    ours, theirs = pair(name)
    for (key, each), (their_key, theirs_each) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert key == their_key
        assert_bits(each, theirs_each)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("name", KINDS)
def test_no_state_is_zeros(name):
    ours, theirs = pair(name)
    x = torch.randn(2, 3)
    for each, expected in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        assert_equal(each, expected, VALUE)


def test_a_loop_over_the_cell_is_the_layer():
    layer, cell = nn.LSTM(3, 5), nn.LSTMCell(3, 5)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = torch.randn(7, 2, 3)
    y, final = layer(x)
    state, outputs = None, []
    for each in x:
        state = cell(each, state)
        outputs.append(state[0])
    assert_equal(torch.stack(outputs), y, VALUE)
    assert_equal(state[1], final[1][0], VALUE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nn.LSTMCell(3, 0), "hidden_size must be a positive whole number"),
        (lambda: nn.RNNCell(3, 5, nonlinearity="sine"), "'tanh' or 'relu'"),
        (lambda: nn.GRUCell(3, 5)(torch.randn(2, 4)), r"4 in shape \(2, 4\).*input_size = 3"),
        (lambda: nn.GRUCell(3, 5)(torch.randn(1, 2, 3)), r"dimensions.*\[B, I\], or \[I\] for one sequence"),
        (lambda: nn.GRUCell(3, 5)(torch.randn(2, 3), torch.randn(1, 5)), r"\(2, 5\): batch, hidden_size"),
        (lambda: nn.LSTMCell(3, 5)(torch.randn(2, 3), torch.randn(2, 5)), r"1 tensor\(s\).*\(h, c\)"),
        (lambda: nn.LSTMCell(3, 5)(torch.zeros(2, 3, dtype=torch.long)), "floating-point"),
        (lambda: nn.LSTMCell(3, 5)(torch.zeros(2, 3).double()), "differ in dtype"),
        (lambda: nn.LSTMCell(3, 5)([[1.0, 2.0, 3.0]]), "must be a tensor"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_backend_is_said():
    cell = nn.LSTMCell(3, 5)
    assert cell.backend_for(torch.zeros(2, 3)).startswith("llvm: ")
    assert str(cell) == "LSTMCell(3, 5)"
