"""`Recurrent`: what it returns for any cell, and how it meets inputs that are laid out oddly."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import recollect
from recollect import cells, nn
from tolerances import assert_bits, assert_equal


@recollect.cell(gates="f n", states="h s", vectors="v")
def own(inp, rec, prev, vec):
    f = torch.sigmoid(inp.f + rec.f + vec.v * prev.s)
    return f * prev.h + (1 - f) * torch.tanh(inp.n + rec.n), prev.s + f


every_cell = pytest.mark.parametrize(
    "cell", [*(cells.by_name(name) for name in cells.__all__), own], ids=lambda c: c.name
)


@every_cell
@pytest.mark.parametrize("batch_first", [False, True])
def test_shapes_of_what_comes_back(cell, batch_first):
    layer = nn.Recurrent(cell, 3, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
    y, state = layer(torch.randn(7, 4, 3))
    batch = 7 if batch_first else 4
    assert y.shape == (7, 4, 10)
    assert isinstance(state, tuple) == (len(cell.states) > 1)
    for each in state if isinstance(state, tuple) else (state,):
        assert each.shape == (4, batch, 5)
    y, state = layer(torch.randn(7, 3))
    assert y.shape == (7, 10)
    for each in state if isinstance(state, tuple) else (state,):
        assert each.shape == (4, 5)


@every_cell
def test_parameters_have_the_promised_names_and_shapes(cell):
    layer = nn.Recurrent(cell, 3, 5, num_layers=2, bidirectional=True)
    rows = len(cell.gates) * 5
    for suffix, width in (("l0", 3), ("l0_reverse", 3), ("l1", 10), ("l1_reverse", 10)):
        assert getattr(layer, f"weight_ih_{suffix}").shape == (rows, width)
        assert getattr(layer, f"weight_hh_{suffix}").shape == (rows, 5)
        assert getattr(layer, f"bias_ih_{suffix}").shape == getattr(layer, f"bias_hh_{suffix}").shape == (rows,)
        for name in cell.vectors:
            assert getattr(layer, f"vector_{name}_{suffix}").shape == (5,)
    assert len(list(layer.parameters())) == 4 * (4 + len(cell.vectors))
    bound = 5**-0.5
    assert all(each.abs().max() <= bound for each in layer.parameters())


def test_the_output_is_the_first_state():
    layer = nn.Recurrent(own, 3, 5, bidirectional=True)
    y, (h, _) = layer(torch.randn(6, 4, 3))
    assert_bits(y[-1, :, :5], h[0])
    assert_bits(y[0, :, 5:], h[1])


def test_initial_states_are_zeros_where_none_is_given():
    layer, x = nn.Recurrent(own, 3, 5, num_layers=2), torch.randn(6, 4, 3)
    zeros = torch.zeros(2, 4, 5)
    assert_bits(layer(x)[0], layer(x, (zeros, zeros))[0])


def test_a_list_of_states_and_a_single_one_in_a_tuple_are_taken():
    x, zeros = torch.randn(6, 4, 3), torch.zeros(1, 4, 5)
    two, one = nn.Recurrent(own, 3, 5), nn.Recurrent(cells.gru, 3, 5)
    assert_bits(two(x, [zeros, zeros])[0], two(x)[0])
    assert_bits(one(x, (zeros,))[0], one(x, zeros)[0])


ODD_LAYOUTS = {
    "transposed": lambda: torch.randn(4, 6, 3).transpose(0, 1),
    "features first in memory": lambda: torch.randn(3, 6, 4).permute(1, 2, 0),
    "every other step": lambda: torch.randn(12, 4, 3)[::2],
    "every other feature": lambda: torch.randn(6, 4, 6)[:, :, ::2],
    "expanded over the batch": lambda: torch.randn(6, 1, 3).expand(6, 4, 3),
    "expanded over time": lambda: torch.randn(4, 3).expand(6, 4, 3),
    "one number": lambda: torch.tensor(0.3).expand(6, 4, 3),
    "off the start of its storage": lambda: torch.randn(6 * 4 * 3 + 1)[1:].view(6, 4, 3),
}


@pytest.mark.parametrize("layout", ODD_LAYOUTS)
def test_any_layout_in_memory(layout):
    torch.manual_seed(0)
    layer = nn.Recurrent(own, 3, 5, bidirectional=True)
    x = ODD_LAYOUTS[layout]()
    plain = x.contiguous().clone().requires_grad_()
    odd = x.detach().requires_grad_()
    y, true = layer(odd)[0], layer(plain)[0]
    assert_bits(y, true)
    weights = torch.randn_like(true).transpose(0, 1).contiguous().transpose(0, 1)  # a gradient laid out oddly, too
    (gradient,) = torch.autograd.grad(y, odd, weights)
    (true_gradient,) = torch.autograd.grad(true, plain, weights)
    assert_bits(gradient, true_gradient)


def test_expanded_states_and_an_expanded_gradient():
    torch.manual_seed(0)
    layer, x = nn.Recurrent(own, 3, 5, num_layers=2), torch.randn(6, 4, 3)
    learned = torch.randn(2, 1, 5, requires_grad=True)
    copied = learned.detach().expand(2, 4, 5).clone().requires_grad_()
    y, final = layer(x, (learned.expand(2, 4, 5), learned.expand(2, 4, 5)))
    true, true_final = layer(x, (copied, copied))
    assert_bits(y, true)
    (y.sum() + final[1].sum()).backward()  # sum() sends one number back, expanded
    (true.sum() + true_final[1].sum()).backward()
    assert_equal(learned.grad, copied.grad.sum(1, keepdim=True))


def test_non_contiguous_parameters():
    torch.manual_seed(0)
    layer, x = nn.Recurrent(own, 3, 5), torch.randn(6, 4, 3)
    expected = layer(x)[0]
    for name in ("weight_ih_l0", "weight_hh_l0"):
        turned = getattr(layer, name).detach().t().contiguous().t()
        assert not turned.is_contiguous()
        setattr(layer, name, torch.nn.Parameter(turned))
    y = layer(x)[0]
    assert_bits(y, expected)
    y.sum().backward()
    assert layer.weight_hh_l0.grad.isfinite().all()


def test_parametrised_weights_are_read_through_their_parametrisation():
    layer, x = nn.Recurrent(cells.rnn_tanh, 3, 5), torch.randn(6, 4, 3)
    torch.nn.utils.parametrizations.orthogonal(layer, "weight_hh_l0")
    y = layer(x)[0]
    with recollect.set_backend("reference"):
        assert_equal(y, layer(x)[0])
    y.sum().backward()
    assert layer.parametrizations.weight_hh_l0.original.grad.abs().sum() > 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_of_a_layer_computes_the_same(duplicate):
    layer, x = nn.Recurrent(own, 3, 5, num_layers=2, dropout=0.5, bidirectional=True).eval(), torch.randn(6, 4, 3)
    twin = duplicate(layer)
    assert_equal(twin(x)[0], layer(x)[0])
    assert twin.weight_ih_l0.data_ptr() != layer.weight_ih_l0.data_ptr()


def test_the_input_is_left_alone():
    layer, x = nn.Recurrent(own, 3, 5), torch.randn(6, 4, 3)
    state = (torch.randn(1, 4, 5), torch.randn(1, 4, 5))
    before = [each.clone() for each in (x, *state, *layer.parameters())]
    layer(x, state, lengths=[6, 0, 3, 2])[0].sum().backward()
    for each, old in zip((x, *state, *layer.parameters()), before, strict=True):
        assert_bits(each, old)


def test_the_printed_form_tells_the_cell_and_what_is_not_default():
    assert repr(nn.Recurrent(own, 3, 5, num_layers=2)) == "Recurrent(own, 3, 5, num_layers=2)"
