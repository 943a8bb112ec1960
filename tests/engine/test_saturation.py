"""Gates far into their limits: kernels stay finite and right, and the sLSTM's stabiliser does what it is for.

Pre-activations are whole multiples of the size, which float32 holds exactly: what is tested is the step, not how much
a product of large numbers loses.
"""

from __future__ import annotations

import pytest
import torch

import recollect
from recollect import cells, nn
from tolerances import GRADIENT, VALUE, assert_equal

STEPS, BATCH, HIDDEN = 50, 24, 3  # sizes that other tests have kernels for
SIZES = [100.0, 1e4]
DTYPES = [torch.float32, torch.float64]


def saturated(cell, size, dtype):
    """A layer whose input sets every gate to -size, 0 or size (sLSTM: never to 0), others in each unit and row."""
    torch.manual_seed(0)
    layer = nn.Recurrent(cell, 3, HIDDEN, dtype=dtype)
    with torch.no_grad():
        which = torch.randint(0, 3, (len(cell.gates) * HIDDEN,))
        sign = torch.randint(0, 2, which.shape) * 2 - 1
        layer.weight_ih_l0.zero_()[torch.arange(len(which)), which] = (size * sign).to(dtype)
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
        if cell is cells.slstm:  # its m adds pre-activations up: beside 1e4 others would be rounded
            layer.weight_hh_l0.zero_()
        if cell is cells.rnn_relu:  # keeps what it was given, as it is meant to start
            layer.weight_hh_l0.copy_(torch.eye(HIDDEN))
    x = torch.randint(-1, 2, (STEPS, BATCH, 3))
    if cell is cells.slstm:
        x = torch.where(x == 0, 1, x)
    return layer, x.to(dtype)


def results(layer, x, backend):
    leaf = x.clone().requires_grad_()
    with recollect.set_backend(backend):
        y, final = layer(leaf)
    final = final if isinstance(final, tuple) else (final,)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    gradients = torch.autograd.grad((y * weight).sum(), [leaf, *layer.parameters()])
    return [y.detach(), *(each.detach() for each in final)], gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", cells.__all__)
def test_values_and_gradients_are_those_of_the_reference(name, size, dtype):
    layer, x = saturated(cells.by_name(name), size, dtype)
    values, gradients = results(layer, x, "llvm")
    true_values, true_gradients = results(layer.double(), x.double(), "reference")
    for mine, true in zip(values, true_values, strict=True):
        assert true.isfinite().all()
        assert_equal(mine, true, VALUE)
    for mine, true in zip(gradients, true_gradients, strict=True):
        assert true.isfinite().all()
        assert_equal(mine, true, GRADIENT)


# The sLSTM ----------------------------------------------------------------------------------------


def weighted_mean(layer, x):
    """h_t = o_t sum_k w_tk tanh(g_k), with w_tk the softmax over k <= t of i_k + ln σ(f_k+1) + ... + ln σ(f_t).

    What equations 8 to 10 are from zero states, without a recurrence, where W_hh is 0; none of it can overflow.
    """
    i, f, g, o = torch.nn.functional.linear(x, layer.weight_ih_l0).chunk(4, -1)
    kept = torch.nn.functional.logsigmoid(f).cumsum(0)
    exponents = i.unsqueeze(0) + kept.unsqueeze(1) - kept.unsqueeze(0)  # [t, k, B, H]
    later = torch.ones(len(x), len(x)).triu(1).bool()
    weights = exponents.masked_fill(later[:, :, None, None], -torch.inf).softmax(1)
    return torch.sigmoid(o) * (weights * torch.tanh(g).unsqueeze(0)).sum(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1.0, *SIZES])
def test_slstm_is_the_weighted_mean_that_it_stands_for(size, dtype):
    layer, x = saturated(cells.slstm, size, dtype)
    (y, *_), (dx, dweight, *_) = results(layer, x, "llvm")
    layer.double()
    leaf = x.double().requires_grad_()
    true = weighted_mean(layer, leaf)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    true_dx, true_dweight = torch.autograd.grad((true * weight.double()).sum(), [leaf, layer.weight_ih_l0])
    assert_equal(y, true.detach(), VALUE)
    assert_equal(dx, true_dx, GRADIENT)
    assert_equal(dweight, true_dweight, GRADIENT)


@pytest.mark.parametrize("backend", ["llvm", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slstm_keeps_its_first_input_however_small_its_gate(backend, dtype):
    """i_1 = e^-1000 is 0 in any precision; h is o tanh(g) all the same, since there is nothing beside it."""
    layer = nn.Recurrent(cells.slstm, 1, 2, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih_l0.copy_(torch.tensor([-1000, -1000, 5, 5, 1, 1, 2, 2]))
    (y, _, _, n, _), _ = results(layer, torch.zeros(4, 1, 1, dtype=dtype), backend)
    assert n.min() >= 1
    o, g = torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert_equal(y, (torch.sigmoid(o) * torch.tanh(g)).expand_as(y))


def test_slstm_stabiliser_is_that_of_the_paper():
    """Equations 15 to 17, from the second step on; and n, the sum of weights of which one is 1, is never below 1."""
    torch.manual_seed(0)
    layer, x = nn.Recurrent(cells.slstm, 3, 5, dtype=torch.float64), torch.randn(STEPS, 4, 3, dtype=torch.float64) * 30
    with recollect.set_backend("llvm"):
        y, _, (_, _, n, m) = layer(x, return_states=True)
    before = torch.cat([torch.zeros_like(y[:1]), y[:-1]])
    preacts = torch.nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
    i, f, _, _ = (preacts + torch.nn.functional.linear(before, layer.weight_hh_l0)).chunk(4, -1)
    log_f = torch.nn.functional.logsigmoid(f)
    assert_equal(m[0], i[0])
    assert_equal(m[1:], torch.maximum(log_f[1:] + m[:-1], i[1:]))
    kept = torch.exp(log_f[1:] + m[:-1] - m[1:])
    assert kept.max() <= 1 + 1e-12  # rounding here
    assert_equal(n[1:], kept * n[:-1] + torch.exp(i[1:] - m[1:]))
    assert n.min() >= 1
