"""The backward pass as PyTorch's own tools see it: gradcheck, double backward, frozen inputs, changed memory."""

from __future__ import annotations

import pytest
import torch

import recollect
from recollect import nn
from recollect.engine import reference
from tolerances import GRADIENT, assert_bits, assert_equal


@recollect.cell(gates="f n", states="h s", vectors="v w")
def custom(inp, rec, prev, vec):
    f = torch.sigmoid(inp.f + rec.f + vec.v * prev.s)
    n = torch.tanh(inp.n * vec.w + f * rec.n)
    return f * prev.h + (1 - f) * n, prev.s + n * n


LAYERS = {
    "lstm": lambda **options: nn.LSTM(2, 3, dtype=torch.float64, **options),
    "gru": lambda **options: nn.GRU(2, 3, dtype=torch.float64, **options),
    "custom": lambda **options: nn.Recurrent(custom, 2, 3, dtype=torch.float64, **options),
}


@pytest.fixture(autouse=True)
def _llvm():
    with recollect.set_backend("llvm"):
        torch.manual_seed(5)
        yield


def as_function(layer, lengths=None):
    """The layer as a function of x, its states and its parameters, and values for them."""
    names = [name for name, _ in layer.named_parameters()]
    count = len(layer.cell.states)

    def call(x, *rest):
        state = rest[0] if count == 1 else rest[:count]
        parameters = dict(zip(names, rest[count:], strict=True))
        y, final = torch.func.functional_call(layer, parameters, (x, state), {"lengths": lengths})
        return (y, *final) if count > 1 else (y, final)

    places = layer.num_layers * (1 + layer.bidirectional)
    states = [torch.randn(places, 2, 3, dtype=torch.float64, requires_grad=True) for _ in layer.cell.states]
    values = [torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True), *states, *layer.parameters()]
    return call, values


@pytest.mark.parametrize("lengths", [None, [1, 3]], ids=["dense", "lengths"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name, lengths):
    call, values = as_function(LAYERS[name](bidirectional=True), lengths)
    assert torch.autograd.gradcheck(call, values)


@pytest.mark.parametrize("name", LAYERS)
def test_gradgradcheck(name):
    call, values = as_function(LAYERS[name](), [3, 2])
    assert torch.autograd.gradgradcheck(call, values, fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_penalty_has_the_reference_gradient(name):
    layer = LAYERS[name](num_layers=2)
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    found = []
    for backend in ("llvm", "reference"):
        with recollect.set_backend(backend):
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(layer(leaf)[0].square().sum(), leaf, create_graph=True)
            gradient.norm().backward()
            found.append([leaf.grad, *(each.grad for each in layer.parameters())])
    for ours, truth in zip(*found, strict=True):
        assert_equal(ours, truth, GRADIENT)


def test_backward_twice_gives_twice_the_gradient():
    layer, x = LAYERS["lstm"](), torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = layer(x)[0].square().sum()
    loss.backward(retain_graph=True)
    once = [each.grad.clone() for each in (x, *layer.parameters())]
    loss.backward()
    for first, both in zip(once, (x, *layer.parameters()), strict=True):
        assert_bits(both.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_backward_works_in_eval_mode():
    layer, x = LAYERS["gru"](num_layers=2, dropout=0.5).eval(), torch.randn(4, 2, 2, dtype=torch.float64)
    layer(x)[0].sum().backward()
    ours = [each.grad.clone() for each in layer.parameters()]
    layer.zero_grad()
    with recollect.set_backend("reference"):
        layer(x)[0].sum().backward()
    for mine, each in zip(ours, layer.parameters(), strict=True):
        assert_equal(mine, each.grad, GRADIENT)


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0", "bias_hh_l0", "vector_v_l0", "x"])
def test_a_tensor_changed_in_place_before_backward_is_torchs_error(name):
    layer, x = LAYERS["custom"](), torch.randn(4, 2, 2, dtype=torch.float64)
    y, _ = layer(x)
    with torch.no_grad():
        (x if name == "x" else getattr(layer, name)).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_results_may_be_changed_in_place():
    layer, x = LAYERS["lstm"](), torch.randn(4, 2, 2, dtype=torch.float64)
    y, (h, c) = layer(x)
    (y.sum() + h.sum() + c.sum()).backward()
    plain = [each.grad.clone() for each in layer.parameters()]
    layer.zero_grad()
    y, (h, c) = layer(x)
    (y.mul_(2.0).sum() + h.mul_(2.0).sum() + c.mul_(2.0).sum()).backward()
    for once, each in zip(plain, layer.parameters(), strict=True):
        assert_equal(each.grad, 2 * once, GRADIENT)


@pytest.mark.parametrize("name", LAYERS)
def test_no_two_gradients_share_memory(name):
    """Clipping scales each .grad in place: one that is seen through two parameters would be scaled twice."""
    layer, x = LAYERS[name](num_layers=2), torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    layer(x)[0].square().sum().backward()
    leaves = [x, *layer.parameters()]
    before = [each.grad.clone() for each in leaves]
    for each in leaves:
        each.grad.mul_(0.5)
    for each, value in zip(leaves, before, strict=True):
        assert_bits(each.grad, 0.5 * value)


def test_calls_do_not_share_what_they_keep_for_backward():
    layer = LAYERS["custom"]()
    inputs = [torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def gradient(x):
        return torch.autograd.grad(layer(x)[0].square().sum(), x)[0]

    alone = [gradient(x) for x in inputs]
    losses = [layer(x)[0].square().sum() for x in inputs]
    with torch.inference_mode():
        layer(torch.randn(4, 2, 2, dtype=torch.float64))
    for index in (1, 2, 0):
        assert_bits(torch.autograd.grad(losses[index], inputs[index])[0], alone[index])


FROZEN = {
    "weights": lambda name: not name.startswith(("weight", "bias", "vector")),
    "everything but x": lambda name: name == "x",
    "x and the states": lambda name: name not in ("x", "h", "s"),
    "everything but a state": lambda name: name == "s",
    "everything but W_hh": lambda name: name == "weight_hh_l0",
    "everything but a vector": lambda name: name == "vector_w_l0",
    "everything but b_ih": lambda name: name == "bias_ih_l0",
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_only_what_requires_a_gradient_gets_one(frozen):
    keep = FROZEN[frozen]
    layer = LAYERS["custom"]()
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    state = tuple(torch.randn(1, 2, 3, dtype=torch.float64) for _ in range(2))

    def gradients(backend, wanted):
        leaves = {"x": x.clone(), "h": state[0].clone(), "s": state[1].clone(), **dict(layer.named_parameters())}
        for name, each in leaves.items():
            each.grad = None
            each.requires_grad_(wanted(name))
        with recollect.set_backend(backend):
            y, final = layer(leaves["x"], (leaves["h"], leaves["s"]))
            (y.square().sum() + final[1].sum()).backward()
        return {name: each.grad for name, each in leaves.items()}

    truth = gradients("reference", lambda name: True)
    found = gradients("llvm", keep)
    assert {name for name, each in found.items() if each is not None} == {name for name in found if keep(name)}
    for name, each in found.items():
        if each is not None:
            assert_equal(each, truth[name], GRADIENT, name)


def test_results_without_a_gradient_need_none():
    layer = LAYERS["gru"]().requires_grad_(False)
    y, h = layer(torch.randn(4, 2, 2, dtype=torch.float64))
    assert not y.requires_grad
    assert not h.requires_grad


def test_backward_uses_what_its_forward_chose(monkeypatch):
    layer, x = LAYERS["gru"](), torch.randn(4, 2, 2, dtype=torch.float64)
    layer(x)[0].sum().backward()
    expected = [each.grad.clone() for each in layer.parameters()]
    layer.zero_grad()
    loss = layer(x)[0].sum()
    recollect.set_backend("reference")
    monkeypatch.setattr(reference, "run", lambda *_, **__: pytest.fail("the reference ran"))
    loss.backward()
    for each, truth in zip(layer.parameters(), expected, strict=True):
        assert_bits(each.grad, truth)
