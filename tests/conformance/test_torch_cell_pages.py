"""The pages of torch.nn.RNNCell, LSTMCell and GRUCell, sentence by sentence. Each docstring quotes what it checks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from against_torch import (
    KINDS,
    TORCH_ERRORS,
    B,
    H,
    I,
    assert_same,
    drawn,
    dtypes,
    make,
    pair,
    run_examples,
    shapes,
    states,
    step_kinds,
    tensors,
)
from recollect import nn
from recollect.errors import InputError
from tolerances import assert_bits, assert_equal

given = pytest.mark.parametrize("given", [True, False], ids=["hx", "no hx"])
batches = pytest.mark.parametrize("batch", [(B,), ()], ids=["(N, H_in)", "(H_in)"])
PAGES = [torch.nn.RNNCell, torch.nn.LSTMCell, torch.nn.GRUCell]
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


@step_kinds
@dtypes
@given
@batches
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bias=False"])
def test_the_cell_is_torchs(kind, dtype, given, batch, bias):
    """ "input: (N, H_in) or (H_in) tensor containing input features"; "bias: If False, then the layer does not use bias
    weights b_ih and b_hh"; "nonlinearity: ... either 'tanh' or 'relu'"."""
    ours, theirs = pair(kind, step=True, dtype=dtype, bias=bias)
    assert_same(ours, theirs, drawn(*batch, I, dtype=dtype), states(kind, *batch, dtype=dtype) if given else None)


def equations(kind, cell, x, h, c):
    """One step, as the page writes it."""
    if kind.startswith("RNN"):
        nonlinearity = torch.tanh if kind == "RNN tanh" else torch.relu
        return (nonlinearity(cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh),)
    inp, rec = (cell.weight_ih @ x + cell.bias_ih).split(H), (cell.weight_hh @ h + cell.bias_hh).split(H)
    if kind == "GRU":
        r, z = torch.sigmoid(inp[0] + rec[0]), torch.sigmoid(inp[1] + rec[1])
        return ((1 - z) * torch.tanh(inp[2] + r * rec[2]) + z * h,)
    i, f, o = (torch.sigmoid(inp[k] + rec[k]) for k in (0, 1, 3))
    c = f * c + i * torch.tanh(inp[2] + rec[2])
    return o * torch.tanh(c), c


@step_kinds
@torch.no_grad()
def test_the_equations_of_the_page(kind):
    """ "h' = tanh(W_ih x + b_ih + W_hh h + b_hh). If nonlinearity is 'relu', then ReLU is used in place of tanh", and
    those of the LSTM and the GRU."""
    cell, x, hx = make(nn, kind, step=True, dtype=torch.float64), drawn(I), states(kind)
    h, *c = tensors(hx)
    for mine, true in zip(tensors(cell(x, hx)), equations(kind, cell, x, h, *c or [None]), strict=True):
        assert_equal(mine, true)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.__name__)
def test_the_example_of_the_page(page):
    """ "Examples", run with our classes and with torch's."""
    mine, true = run_examples(page, nn), run_examples(page, torch.nn)
    assert isinstance(mine["rnn"], getattr(nn, page.__name__))
    assert_equal(mine["hx"], true["hx"])
    outputs = [torch.stack(list(each["output"])) for each in (mine, true)]
    assert_equal(*outputs)


@step_kinds
@batches
def test_shapes(kind, batch):
    """ "h_1 of shape (batch, hidden_size) or (hidden_size)"; one tensor, or a tuple (h_1, c_1)."""
    cell = make(nn, kind, step=True)
    out = cell(torch.zeros(*batch, I))
    assert isinstance(out, tuple) is (kind == "LSTM")
    assert shapes(out) == [(*batch, H)] * (1 + (kind == "LSTM"))


@step_kinds
@batches
def test_no_hx_is_zeros(kind, batch):
    """ "If (h_0, c_0) is not provided, both h_0 and c_0 default to zero"."""
    cell, x, hx = make(nn, kind, step=True), drawn(*batch, I, dtype=torch.float32), states(kind, *batch)
    zeros = [torch.zeros_like(each, dtype=torch.float32) for each in tensors(hx)]
    for mine, true in zip(
        tensors(cell(x)), tensors(cell(x, tuple(zeros) if kind == "LSTM" else zeros[0])), strict=True
    ):
        assert_bits(mine, true)


@step_kinds
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bias=False"])
def test_names_and_shapes_of_the_parameters(kind, bias):
    """ "weight_ih: the learnable input-hidden weights, of shape (4*hidden_size, input_size)", and so on."""
    gates = GATES[KINDS[kind][0]] * H
    expected = {"weight_ih": (gates, I), "weight_hh": (gates, H)}
    expected |= {"bias_ih": (gates,), "bias_hh": (gates,)} if bias else {}
    for cell in pair(kind, step=True, bias=bias):
        assert [(name, tuple(each.shape)) for name, each in cell.named_parameters()] == list(expected.items())
        assert list(cell.state_dict()) == list(expected)
        if not bias:
            assert cell.bias_ih is None
            assert cell.bias_hh is None


@step_kinds
@dtypes
def test_initial_values(kind, dtype):
    """ "All the weights and biases are initialized from U(-sqrt(k), sqrt(k)) where k = 1/hidden_size"."""
    ours, theirs = (make(library, kind, step=True, sizes=(I, 64), dtype=dtype) for library in (nn, torch.nn))
    for _ in range(2):
        for mine, true in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_bits(mine, true)
            assert 0.8 / math.sqrt(64) < mine.abs().max() <= 1 / math.sqrt(64)
        for cell in (ours, theirs):
            torch.manual_seed(5)
            cell.reset_parameters()


@step_kinds
@given
@dtypes
def test_a_batch_of_nothing(kind, given, dtype):
    """N = 0: torch returns empty tensors, and gradients of zeros."""
    ours, theirs = pair(kind, step=True, dtype=dtype)
    assert_same(ours, theirs, drawn(0, I, dtype=dtype), states(kind, 0, dtype=dtype) if given else None)


ONE, TWO = "RNN tanh, RNN relu, GRU", "LSTM"  # kinds with one state, with two
ALL = f"{ONE}, {TWO}"


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


def hidden(kind, *leading, size=H, **options):
    """Zeros in the form of hx."""
    h = zeros(*leading, size, **options)
    return (h, h) if kind == "LSTM" else h


# Name -> (the kinds that it concerns, the call); the cell is (I, H), the good input (B, I).
CALLS = {
    "input of no dimension": (ALL, lambda cell, kind: cell(zeros())),
    "input of three dimensions": (ALL, lambda cell, kind: cell(zeros(1, B, I))),
    "other number of features": (ALL, lambda cell, kind: cell(zeros(B, I + 1))),
    "other number of features, unbatched": (ALL, lambda cell, kind: cell(zeros(I + 1))),
    "input of another dtype": (ALL, lambda cell, kind: cell(zeros(B, I).double())),
    "input of integers": (ALL, lambda cell, kind: cell(zeros(B, I).long())),
    "a packed sequence": (ALL, lambda cell, kind: cell(pack_sequence([zeros(2, I)]))),
    "nothing as input": (ALL, lambda cell, kind: cell(None)),
    "hx of another size": (ALL, lambda cell, kind: cell(zeros(B, I), hidden(kind, B, size=H + 1))),
    "hx of another batch": (ALL, lambda cell, kind: cell(zeros(B, I), hidden(kind, B - 1))),
    "hx of one row for many": (ALL, lambda cell, kind: cell(zeros(B, I), hidden(kind, 1))),
    "1-D hx for 2-D input": (ALL, lambda cell, kind: cell(zeros(B, I), hidden(kind))),
    "2-D hx for 1-D input": (ALL, lambda cell, kind: cell(zeros(I), hidden(kind, 1))),
    "hx of a layer": (ALL, lambda cell, kind: cell(zeros(B, I), hidden(kind, 1, B))),
    "3-D hx for 1-D input": (ALL, lambda cell, kind: cell(zeros(I), hidden(kind, 1, 1))),
    "hx of another dtype": (ALL, lambda cell, kind: cell(zeros(B, I), hidden(kind, B, dtype=torch.float64))),
    "a number as hx": (ALL, lambda cell, kind: cell(zeros(B, I), 0.0)),
    "two states for one": (ONE, lambda cell, kind: cell(zeros(B, I), (zeros(B, H), zeros(B, H)))),
    "h alone": (TWO, lambda cell, kind: cell(zeros(B, I), zeros(B, H))),
    "h alone in a tuple": (TWO, lambda cell, kind: cell(zeros(B, I), (zeros(B, H),))),
    "both states in one tensor": (TWO, lambda cell, kind: cell(zeros(B, I), zeros(2, B, H))),
    "c of another size": (TWO, lambda cell, kind: cell(zeros(B, I), (zeros(B, H), zeros(B, H + 1)))),
    "c of another batch": (TWO, lambda cell, kind: cell(zeros(B, I), (zeros(B, H), zeros(1, H)))),
    "three states for two": (TWO, lambda cell, kind: cell(zeros(B, I), (zeros(B, H),) * 3)),
}


@pytest.mark.parametrize(
    ("case", "kind"), [(case, kind) for case, (whom, _) in CALLS.items() for kind in whom.split(", ")]
)
def test_a_call_that_torch_refuses(case, kind):
    """Where torch raises, an error of ours is raised."""
    ours, theirs = pair(kind, step=True)
    with pytest.raises(TORCH_ERRORS):
        CALLS[case][1](theirs, kind)
    with pytest.raises(InputError):
        CALLS[case][1](ours, kind)


@pytest.mark.parametrize("sizes", [(-1, H), (I, -1), (2.0, H), (I, "4")], ids=str)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.__name__)
def test_a_construction_that_torch_refuses(page, sizes):
    """Where torch raises, an error of ours is raised."""
    with pytest.raises(TORCH_ERRORS):
        page(*sizes)
    with pytest.raises(InputError):
        getattr(nn, page.__name__)(*sizes)


def test_an_unknown_nonlinearity():
    """ "Can be either 'tanh' or 'relu'": torch finds out in the first call, ours when it is made."""
    with pytest.raises(RuntimeError, match="gelu"):
        torch.nn.RNNCell(I, H, nonlinearity="gelu")(zeros(B, I))
    with pytest.raises(InputError, match="gelu"):
        nn.RNNCell(I, H, nonlinearity="gelu")
