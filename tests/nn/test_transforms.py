"""torch.func over a layer: per-sample gradients, forward mode, second derivatives (pytorch/pytorch#144850, #5261)."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, hessian, jvp, vmap

from recollect import cells, nn
from tolerances import GRADIENT, assert_equal

pytestmark = pytest.mark.filterwarnings(
    "ignore:recollect runs on the reference",
    "ignore:`torch.jit.script` is deprecated",  # torch.func's own forward mode uses it
)
MODELS = {
    "LSTM": lambda: nn.LSTM(2, 3, dtype=torch.float64),
    "GRU, two layers, both ways": lambda: nn.GRU(2, 3, 2, bidirectional=True, dtype=torch.float64),
    "projected": lambda: nn.LSTM(2, 3, proj_size=2, dtype=torch.float64),
    "peephole": lambda: nn.Recurrent(cells.peephole_lstm, 2, 3, dtype=torch.float64),
}


def make(name):
    torch.manual_seed(0)
    return MODELS[name](), torch.randn(5, 4, 2, dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_each_sample(name):
    layer, x = make(name)
    parameters = dict(layer.named_parameters())

    def loss(parameters, sequence):
        return functional_call(layer, parameters, (sequence.unsqueeze(1),))[0].square().sum()

    found = vmap(grad(loss), in_dims=(None, 1))(parameters, x)
    for row in range(x.shape[1]):
        layer.zero_grad()
        layer(x[:, row : row + 1])[0].square().sum().backward()
        for key, parameter in parameters.items():
            assert_equal(found[key][row], parameter.grad, GRADIENT)


@pytest.mark.parametrize("name", MODELS)
def test_forward_mode_is_the_product_with_the_jacobian(name):
    layer, x = make(name)
    direction = torch.randn_like(x)
    _, tangent = jvp(lambda value: layer(value)[0], (x,), (direction,))
    jacobian = torch.autograd.functional.jacobian(lambda value: layer(value)[0], x)
    assert_equal(tangent, torch.tensordot(jacobian, direction, 3), GRADIENT)


@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives_agree_with_autograd(name):
    layer, x = make(name)

    def loss(value):
        return layer(value)[0].square().sum()

    found = hessian(loss)(x[:2, :2])
    assert found.abs().max() > 0
    assert_equal(found, torch.autograd.functional.hessian(loss, x[:2, :2]), GRADIENT)
