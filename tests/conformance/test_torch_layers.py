"""The pages of torch.nn.RNN, LSTM and GRU, sentence by sentence. Each docstring quotes what it checks."""

from __future__ import annotations

import math

import pytest
import torch

from against_torch import (
    KINDS,
    B,
    H,
    I,
    P,
    T,
    assert_same,
    code_block,
    drawn,
    dtypes,
    kinds,
    libraries,
    make,
    pair,
    projections_warn,
    run_examples,
    shapes,
    states,
    tensors,
)
from recollect import nn
from recollect.errors import InputError
from tolerances import assert_bits, assert_equal

pytestmark = projections_warn

OPTIONS = {
    "defaults": {},
    "two layers, two directions": {"num_layers": 2, "bidirectional": True},
    "three layers": {"num_layers": 3},
    "bias=False": {"bias": False},
    "batch_first, two directions": {"batch_first": True, "bidirectional": True},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
given = pytest.mark.parametrize("given", [True, False], ids=["hx", "no hx"])
layouts = pytest.mark.parametrize("layout", ["unbatched", "(L, N, H_in)", "(N, L, H_in)"])


def places(**options):
    """D * num_layers."""
    return options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)


def width(kind):
    """H_out: proj_size if proj_size > 0 otherwise hidden_size."""
    return P if "proj_size" in kind else H


# ---------------------------------------------------------------- what is computed


@kinds
@dtypes
@options
@given
def test_the_layer_is_torchs(kind, dtype, options, given):
    """ "Apply a multi-layer ... RNN to an input sequence", with every argument of the page."""
    ours, theirs = pair(kind, dtype=dtype, **options)
    hx = states(kind, places(**options), T if options.get("batch_first") else B, dtype=dtype) if given else None
    assert_same(ours, theirs, drawn(T, B, I, dtype=dtype), hx)


@kinds
@dtypes
@given
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_input(kind, dtype, given, batch_first):
    """ "input: tensor of shape (L, H_in) for unbatched input"; "batch_first ... is ignored for unbatched inputs"."""
    ours, theirs = pair(kind, dtype=dtype, bidirectional=True, batch_first=batch_first)
    assert_same(ours, theirs, drawn(T, I, dtype=dtype), states(kind, 2, dtype=dtype) if given else None)


def equations(kind, layer, x, h, c):
    """One step, as the page writes it."""
    w_ih, w_hh, b_ih, b_hh = (getattr(layer, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    if kind.startswith("RNN"):
        nonlinearity = torch.tanh if kind == "RNN tanh" else torch.relu
        return nonlinearity(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh), c
    inp, rec = (x @ w_ih.T + b_ih).split(H, -1), (h @ w_hh.T + b_hh).split(H, -1)
    if kind == "GRU":
        r, z = torch.sigmoid(inp[0] + rec[0]), torch.sigmoid(inp[1] + rec[1])
        n = torch.tanh(inp[2] + r * rec[2])
        return (1 - z) * n + z * h, c
    i, f, o = (torch.sigmoid(inp[k] + rec[k]) for k in (0, 1, 3))
    c = f * c + i * torch.tanh(inp[2] + rec[2])
    h = o * torch.tanh(c)
    return h @ layer.weight_hr_l0.T if "proj_size" in kind else h, c


@kinds
@torch.no_grad()
def test_the_equations_of_the_page(kind):
    """ "For each element in the input sequence, each layer computes the following function"; weights packed as
    (W_ii|W_if|W_ig|W_io) and (W_ir|W_iz|W_in); "h_t = W_hr h_t" with projections."""
    layer, x = make(nn, kind, dtype=torch.float64), drawn(T, B, I)
    h, c, outputs = torch.zeros(B, width(kind), dtype=x.dtype), torch.zeros(B, H, dtype=x.dtype), []
    for each in x:
        h, c = equations(kind, layer, each, h, c)
        outputs.append(h)
    y, final = layer(x)
    assert_equal(y, torch.stack(outputs))
    for each, expected in zip(tensors(final), (h, c), strict=False):
        assert_equal(each[0], expected)


@pytest.mark.parametrize("given", [True, False], ids=["hx", "no hx"])
@pytest.mark.parametrize("batch_first", [False, True])
@torch.no_grad()
def test_the_code_of_the_rnn_page(batch_first, given):
    """ "Efficient implementation equivalent to the following with bidirectional=False", run as it is printed."""
    variables = {"torch": torch, "nn": nn, "input_size": I, "hidden_size": H, "num_layers": 2}
    exec(code_block(torch.nn.RNN), variables)
    variables["rnn"].batch_first = batch_first
    x, hx = drawn(T, B, I, dtype=torch.float32), None
    if given:
        hx = states("RNN tanh", 2, T if batch_first else B, dtype=torch.float32)
    expected, expected_final = variables["forward"](x, hx, batch_first)
    y, final = variables["rnn"](x, hx)
    assert_equal(y, expected)
    assert_equal(final, expected_final)


@torch.no_grad()
def test_the_new_gate_is_not_the_original_papers():
    """ "The calculation of new gate n_t subtly differs from the original paper": after the product, not before."""
    layer, x, h = make(nn, "GRU", dtype=torch.float64), drawn(1, B, I), states("GRU", 1, B)
    inp = (x[0] @ layer.weight_ih_l0.T + layer.bias_ih_l0).split(H, 1)
    w_hh, b_hh = layer.weight_hh_l0.split(H), layer.bias_hh_l0.split(H)
    r, z = (torch.sigmoid(inp[k] + h[0] @ w_hh[k].T + b_hh[k]) for k in (0, 1))
    original = torch.tanh(inp[2] + (r * h[0]) @ w_hh[2].T + b_hh[2])
    pytorchs = torch.tanh(inp[2] + r * (h[0] @ w_hh[2].T + b_hh[2]))
    y = layer(x, h)[0][0]
    assert_equal(y, (1 - z) * pytorchs + z * h[0])
    assert (y - ((1 - z) * original + z * h[0])).abs().max() > 1e-2


@pytest.mark.parametrize("page", [torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU], ids=lambda page: page.__name__)
def test_the_example_of_the_page(page):
    """ "Examples", run with our classes and with torch's."""
    mine, true = run_examples(page, nn), run_examples(page, torch.nn)
    assert isinstance(mine["rnn"], getattr(nn, page.__name__))
    for name in ("output", "hn", "cn") if page is torch.nn.LSTM else ("output", "hn"):
        assert_equal(mine[name], true[name])


# ---------------------------------------------------------------- shapes


@kinds
@layouts
@pytest.mark.parametrize("bidirectional", [False, True], ids=["D=1", "D=2"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_shapes(kind, layout, bidirectional, num_layers):
    """ "output: tensor of shape (L, D * H_out) for unbatched input, (L, N, D * H_out) when batch_first=False or
    (N, L, D * H_out) when batch_first=True"; "h_n: ... (D * num_layers, N, H_out)"; "c_n: ... H_cell"."""
    layer = make(nn, kind, num_layers=num_layers, bidirectional=bidirectional, batch_first=layout.startswith("(N"))
    leading = {"unbatched": (T,), "(L, N, H_in)": (T, B), "(N, L, H_in)": (B, T)}[layout]
    d, batch = 1 + bidirectional, () if layout == "unbatched" else (B,)
    expected = [(*leading, d * width(kind)), (d * num_layers, *batch, width(kind))]
    expected += [(d * num_layers, *batch, H)] if kind.startswith("LSTM") else []
    x = torch.zeros(*leading, I)
    assert shapes(layer(x)) == expected
    assert shapes(layer(x, states(kind, d * num_layers, *batch, dtype=torch.float32))) == expected


@kinds
def test_batch_first_is_for_inputs_and_outputs_only(kind):
    """ "Note that this does not apply to hidden or cell states"."""
    layer = make(nn, kind, bidirectional=True)
    x, hx = drawn(T, B, I, dtype=torch.float32), states(kind, 2, B, dtype=torch.float32)
    y, final = layer(x, hx)
    layer.batch_first = True
    other, other_final = layer(x.transpose(0, 1), hx)
    assert_bits(other.transpose(0, 1), y)
    for mine, true in zip(tensors(other_final), tensors(final), strict=True):
        assert_bits(mine, true)


@kinds
@layouts
def test_no_hx_is_zeros(kind, layout):
    """ "Defaults to zeros if (h_0, c_0) is not provided"."""
    layer = make(nn, kind, num_layers=2, batch_first=layout.startswith("(N"))
    x = drawn(*((T,) if layout == "unbatched" else (B, B)), I, dtype=torch.float32)
    hx = states(kind, 2, *(() if layout == "unbatched" else (B,)), dtype=torch.float32)
    zeros = tuple(map(torch.zeros_like, hx)) if isinstance(hx, tuple) else torch.zeros_like(hx)
    for mine, true in zip(tensors(layer(x)), tensors(layer(x, zeros)), strict=True):
        assert_bits(mine, true)


# ---------------------------------------------------------------- layers and directions


def single(kind, source, suffix, input_size):
    """One layer in one direction, with the parameters of a place in ``source``."""
    layer = make(nn, kind, sizes=(input_size, H), dtype=torch.float64)
    layer.load_state_dict({name: getattr(source, name.replace("_l0", suffix)) for name in layer.state_dict()})
    return layer


@kinds
@torch.no_grad()
def test_directions(kind):
    """ "output will contain a concatenation of the forward and reverse hidden states at each time step"; "forward and
    backward are directions 0 and 1 respectively"; "output.view(seq_len, batch, num_directions, hidden_size)"."""
    layer, x = make(nn, kind, bidirectional=True, dtype=torch.float64), drawn(T, B, I)
    y, final = layer(x)
    both = y.view(T, B, 2, width(kind))
    forward, forward_final = single(kind, layer, "_l0", I)(x)
    backward, backward_final = single(kind, layer, "_l0_reverse", I)(x.flip(0))
    assert_equal(both[:, :, 0], forward)
    assert_equal(both[:, :, 1], backward.flip(0))
    for each, first, second in zip(*map(tensors, (final, forward_final, backward_final)), strict=True):
        assert_equal(each, torch.cat([first, second]))


@kinds
@torch.no_grad()
def test_h_n_is_not_the_last_output(kind):
    """ "h_n is not equivalent to the last element of output; the former contains the final forward and reverse hidden
    states, while the latter contains the final forward hidden state and the initial reverse hidden state"."""
    layer = make(nn, kind, num_layers=2, bidirectional=True, dtype=torch.float64)
    y, final = layer(drawn(T, B, I))
    h_n = tensors(final)[0].view(2, 2, B, width(kind))
    both = y.view(T, B, 2, width(kind))
    assert_bits(h_n[1, 0], both[-1, :, 0])
    assert_bits(h_n[1, 1], both[0, :, 1])
    assert not torch.equal(h_n[1, 1], both[-1, :, 1])


@kinds
@torch.no_grad()
def test_stacked_layers(kind):
    """ "stacking two ... together ..., with the second ... taking in outputs of the first ... and computing the final
    results"; "output features (h_t) from the last layer"."""
    layer, x = make(nn, kind, num_layers=2, bidirectional=True, dtype=torch.float64), drawn(T, B, I)
    y, final = layer(x)
    below, finals = x, []
    for place in range(2):
        parts = []
        for direction, suffix in enumerate((f"_l{place}", f"_l{place}_reverse")):
            each = below.flip(0) if direction else below
            part, last = single(kind, layer, suffix, below.shape[-1])(each)
            parts.append(part.flip(0) if direction else part)
            finals.append(tensors(last))
        below = torch.cat(parts, -1)
    assert_equal(y, below)
    for mine, true in zip(tensors(final), zip(*finals, strict=True), strict=True):
        assert_equal(mine, torch.cat(true))


# ---------------------------------------------------------------- dropout


@kinds
def test_dropout_of_nothing_and_dropout_in_evaluation(kind):
    """ "dropout: If non-zero, introduces a Dropout layer": none with p = 0, and none that acts in evaluation."""
    x = drawn(T, B, I, dtype=torch.float32)
    expected = make(nn, kind, num_layers=2)(x)[0]
    assert_bits(make(nn, kind, num_layers=2, dropout=0.0)(x)[0], expected)
    assert_bits(make(nn, kind, num_layers=2, dropout=0.5).eval()(x)[0], expected)


@kinds
@dtypes
def test_dropout_of_everything(kind, dtype):
    """ "a Bernoulli random variable which is 0 with probability dropout": with p = 1 upper layers see zeros."""
    ours, theirs = pair(kind, num_layers=2, dropout=1.0, dtype=dtype)
    assert_same(ours, theirs, drawn(T, B, I, dtype=dtype), states(kind, 2, B, dtype=dtype))


# torch warns that this dropout is nowhere; what the sentence promises is that it does nothing.
@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last:UserWarning")
@kinds
def test_dropout_spares_the_last_layer(kind):
    """ "on the outputs of each ... layer except the last layer": with one layer there is nothing to drop."""
    x = drawn(T, B, I, dtype=torch.float32)
    assert_bits(make(nn, kind, dropout=0.9)(x)[0], make(nn, kind)(x)[0])


@libraries
@pytest.mark.parametrize("p", [0.25, 0.75])
@torch.no_grad()
def test_how_much_is_dropped(library, p):
    """ "0 with probability dropout", drawn for each element of each step; the rest is scaled by 1/(1-p).

    The upper layer passes on what it gets: W_ih is the identity, W_hh and the biases are 0."""
    layer = make(library, "RNN relu", sizes=(I, 16), num_layers=2, dropout=p)
    layer.weight_ih_l1.copy_(torch.eye(16))
    for name in ("weight_hh_l0", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        getattr(layer, name).zero_()
    layer.bias_ih_l0.fill_(5.0)  # so that no output of the lower layer is 0 by itself
    x = drawn(40, 20, I, dtype=torch.float32)
    lower = layer.eval()(x)[0]
    y = layer.train()(x)[0]
    assert (lower > 0).all()
    kept = y != 0
    torch.testing.assert_close(y[kept], lower[kept] / (1 - p))
    assert abs(kept.double().mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / kept.numel())
    assert not torch.equal(layer(x)[0], y)


# ---------------------------------------------------------------- projections


@pytest.mark.parametrize("bidirectional", [False, True], ids=["D=1", "D=2"])
def test_projections(bidirectional):
    """ "the dimension of h_t will be changed from hidden_size to proj_size (dimensions of W_hi will be changed
    accordingly)"; "weight_hr_l[k] ... of shape (proj_size, hidden_size). Only present when proj_size > 0"."""
    layer = nn.LSTM(I, H, 2, bidirectional=bidirectional, proj_size=P)
    assert layer.proj_size == P
    assert layer.weight_hh_l1.shape == (4 * H, P)
    assert layer.weight_ih_l1.shape == (4 * H, (1 + bidirectional) * P)
    assert layer.weight_hr_l1.shape == (P, H)
    assert hasattr(layer, "weight_hr_l1_reverse") is bidirectional
    assert not any("weight_hr" in name for name in nn.LSTM(I, H).state_dict())


@pytest.mark.parametrize("proj_size", [H, H + 1, -1])
def test_sizes_of_projections_that_cannot_be(proj_size):
    """ "proj_size should be smaller than hidden_size"."""
    with pytest.raises(ValueError, match="proj_size"):
        torch.nn.LSTM(I, H, proj_size=proj_size)
    with pytest.raises(InputError, match="proj_size"):
        nn.LSTM(I, H, proj_size=proj_size)


def test_projections_are_not_for_the_gru():
    """Only the page of the LSTM has proj_size. (Ours takes any cell that does not read its own output.)"""
    with pytest.raises(ValueError, match="proj_size"):
        torch.nn.GRU(I, H, proj_size=P)
    with pytest.raises(InputError, match="proj_size"):
        nn.GRU(I, H, proj_size=P)


# ---------------------------------------------------------------- parameters


@kinds
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bias=False"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["D=1", "D=2"])
def test_names_and_shapes_of_the_parameters(kind, bias, bidirectional):
    """ "weight_ih_l[k] ... of shape (4*hidden_size, input_size) for k = 0. Otherwise, the shape is (4*hidden_size,
    num_directions * hidden_size)"; "bias: If False, then the layer does not use bias weights b_ih and b_hh"."""
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[KINDS[kind][0]] * H
    expected = {}
    for k in range(2):
        for suffix in (f"l{k}", f"l{k}_reverse")[: 1 + bidirectional]:
            expected[f"weight_ih_{suffix}"] = (gates, I if k == 0 else (1 + bidirectional) * width(kind))
            expected[f"weight_hh_{suffix}"] = (gates, width(kind))
            if bias:
                expected |= {f"bias_ih_{suffix}": (gates,), f"bias_hh_{suffix}": (gates,)}
            if "proj_size" in kind:
                expected[f"weight_hr_{suffix}"] = (P, H)
    ours, theirs = (
        make(library, kind, num_layers=2, bias=bias, bidirectional=bidirectional) for library in (nn, torch.nn)
    )
    for layer in (ours, theirs):
        assert [(name, tuple(each.shape)) for name, each in layer.named_parameters()] == list(expected.items())
        assert list(layer.state_dict()) == list(expected)


@kinds
@dtypes
def test_initial_values(kind, dtype):
    """ "All the weights and biases are initialized from U(-sqrt(k), sqrt(k)) where k = 1/hidden_size"; and a seed
    gives torch's own values, when made and when drawn anew."""
    ours, theirs = (
        make(library, kind, sizes=(I, 64), num_layers=2, bidirectional=True, dtype=dtype) for library in (nn, torch.nn)
    )
    for _ in range(2):
        for (name, mine), true in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert_bits(mine, true, name)
            assert mine.abs().max() <= 1 / math.sqrt(64)
            assert mine.max() > 0.8 / math.sqrt(64)
            assert mine.min() < -0.8 / math.sqrt(64)
        for layer in (ours, theirs):
            torch.manual_seed(5)
            layer.reset_parameters()
