"""nn.RNN, LSTM and GRU are torch.nn's: parameters, state_dict, arguments, returns, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from recollect import nn
from tolerances import GRADIENT, assert_bits, assert_equal

KINDS = {
    "LSTM": (nn.LSTM, torch.nn.LSTM, {}),
    "GRU": (nn.GRU, torch.nn.GRU, {}),
    "RNN tanh": (nn.RNN, torch.nn.RNN, {}),
    "RNN relu": (nn.RNN, torch.nn.RNN, {"nonlinearity": "relu"}),
}
OPTIONS = [
    dict(zip(("num_layers", "bidirectional", "bias", "batch_first"), each, strict=True))
    for each in itertools.product((1, 2), (False, True), (True, False), (False, True))
]
kinds = pytest.mark.parametrize("kind", KINDS)


def pair(kind, **options):
    """Our layer and torch's, drawn from one seed."""
    ours, theirs, more = KINDS[kind]
    made = []
    for make in (ours, theirs):
        torch.manual_seed(11)
        made.append(make(3, 4, **({"dtype": torch.float64} | more | options)))
    return made


def tensors(value):
    """The tensors in what a layer returns."""
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, torch.Tensor) else [tensor for each in value for tensor in tensors(each)]


def assert_same(kind, arguments, **options):
    """The same returns and the same gradients for what ``arguments()`` makes."""
    found = []
    for layer in pair(kind, **options):
        leaves, call = arguments()
        results = tensors(layer(*call))
        generator = torch.Generator().manual_seed(1)
        loss = sum((each * torch.randn(each.shape, generator=generator, dtype=each.dtype)).sum() for each in results)
        loss.backward()
        found.append((results, [each.grad for each in (*leaves, *layer.parameters())]))
    (results, gradients), (true_results, true_gradients) = found
    assert len(results) == len(true_results)
    for mine, true in zip(results, true_results, strict=True):
        assert_equal(mine, true)
    for mine, true in zip(gradients, true_gradients, strict=True):
        assert_equal(mine, true, GRADIENT)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def states(kind, *shape):
    h, c = drawn(*shape, seed=1), drawn(*shape, seed=2)
    return ([h, c], (h, c)) if kind == "LSTM" else ([h], h)


@kinds
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_and_state_dict(kind, options):
    ours, theirs = pair(kind, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for (name, mine), (other, true) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        assert_bits(mine, true, name)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)


@kinds
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batched(kind, options, with_state):
    def arguments():
        x = drawn(4, 2, 3)
        if not with_state:
            return [x], (x,)
        places = options["num_layers"] * (1 + options["bidirectional"])
        leaves, hx = states(kind, places, 2 if not options["batch_first"] else 4, 4)
        return [x, *leaves], (x, hx)

    assert_same(kind, arguments, **options)


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "hx"])
def test_unbatched(kind, batch_first, with_state):
    def arguments():
        x = drawn(4, 3)
        if not with_state:
            return [x], (x,)
        leaves, hx = states(kind, 4, 4)
        return [x, *leaves], (x, hx)

    assert_same(kind, arguments, num_layers=2, bidirectional=True, batch_first=batch_first)


@kinds
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [1, 5, 2, 4]], ids=["sorted", "unsorted"])
def test_packed_sequence(kind, lengths, with_state):
    def arguments():
        x = drawn(5, 4, 3)
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        if not with_state:
            return [x], (packed,)
        leaves, hx = states(kind, 4, 4, 4)
        return [x, *leaves], (packed, hx)

    assert_same(kind, arguments, num_layers=2, bidirectional=True)


@kinds
def test_a_packed_sequence_comes_back_with_its_order(kind):
    ours, theirs = pair(kind)
    for packed in (
        pack_sequence([drawn(2, 3), drawn(4, 3)], enforce_sorted=False),
        pack_sequence([drawn(4, 3), drawn(2, 3)]),
    ):
        y, true = ours(packed)[0], theirs(packed)[0]
        assert isinstance(y, PackedSequence)
        assert_bits(y.batch_sizes, true.batch_sizes)
        for field in ("sorted_indices", "unsorted_indices"):
            mine, other = getattr(y, field), getattr(true, field)
            assert (mine is None) == (other is None)
            if mine is not None:
                assert_bits(mine, other)
        assert_equal(pad_packed_sequence(y)[0], pad_packed_sequence(true)[0])


@kinds
def test_attributes_are_torchs(kind):
    options = {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.25, "bidirectional": True}
    ours, theirs = pair(kind, **options)
    names = ["input_size", "hidden_size", *options, "mode", "proj_size", "training"]
    names += ["nonlinearity"] if kind.startswith("RNN") else []
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}


@kinds
def test_positional_arguments_are_in_torchs_order(kind):
    ours, theirs, _ = KINDS[kind]
    tail = (False, True, 0.25, True)
    arguments = (3, 5, 2, "relu", *tail) if kind.startswith("RNN") else (3, 5, 2, *tail)
    mine, true = ours(*arguments), theirs(*arguments)
    for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "mode"):
        assert getattr(mine, name) == getattr(true, name), name


@kinds
def test_the_input_and_the_state_have_torchs_keywords(kind):
    ours, theirs = pair(kind)
    x, (_, hx) = drawn(4, 2, 3), states(kind, 1, 2, 4)
    assert_equal(ours(input=x, hx=hx)[0], theirs(input=x, hx=hx)[0])


@kinds
def test_dropout_does_nothing_in_evaluation(kind):
    ours, theirs = pair(kind, num_layers=3, dropout=0.5)
    x = drawn(4, 2, 3)
    assert_equal(ours.eval()(x)[0], theirs.eval()(x)[0])


@kinds
def test_dropout_of_everything_between_layers(kind):
    """With p = 1 every upper layer sees zeros: the one training-mode result that needs no random numbers."""
    ours, theirs = pair(kind, num_layers=3, dropout=1.0, bidirectional=True)
    x = drawn(4, 2, 3)
    for mine, true in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        assert_equal(mine, true)


@kinds
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_between_layers_is_torchs_from_the_same_seed(kind, batch_first):
    layers, x = pair(kind, num_layers=3, dropout=0.5, bidirectional=True, batch_first=batch_first), drawn(4, 2, 3)
    found = []
    for layer in layers:
        torch.manual_seed(5)
        found.append(tensors(layer(x)))
    for mine, true in zip(*found, strict=True):
        assert_equal(mine, true)


def test_dropout_leaves_the_first_layer_and_the_output_alone():
    torch.manual_seed(0)
    layer = nn.LSTM(3, 5, num_layers=2, dropout=0.9, dtype=torch.float64)
    x = drawn(4, 2, 3)
    (first, (h, _)), (second, (other_h, _)) = layer(x), layer(x)
    assert_bits(h[0], other_h[0])
    assert not torch.equal(h[1], other_h[1])
    assert (first != 0).all()
    assert (second != 0).all()


@kinds
def test_device_and_dtype(kind):
    ours, theirs, more = KINDS[kind]
    mine = ours(3, 5, device="meta", dtype=torch.float16, **more)
    true = theirs(3, 5, device="meta", dtype=torch.float16, **more)
    for a, b in zip(mine.parameters(), true.parameters(), strict=True):
        assert (a.device, a.dtype, a.shape) == (b.device, b.dtype, b.shape)
    torch.set_default_dtype(torch.float64)
    assert ours(3, 5).weight_hh_l0.dtype == torch.float64


@kinds
def test_nan_in_a_row_stays_in_that_row_from_its_step_on(kind):
    ours, theirs = pair(kind)
    x = drawn(4, 3, 3).detach()
    x[2, 1, 0] = torch.nan
    mine, true = ours(x)[0], theirs(x)[0]
    assert_bits(mine.isnan(), true.isnan())
    assert mine[2:, 1].isnan().all()
    assert_equal(mine.nan_to_num(), true.nan_to_num())


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30])
@kinds
def test_huge_inputs_saturate_like_torchs(kind, value):
    ours, theirs = pair(kind, dtype=torch.float32)
    x = drawn(4, 3, 3).detach().float()
    x[2, 1, 0] = value
    mine, true = ours(x)[0], theirs(x)[0]
    assert_bits(mine.isnan(), true.isnan())
    torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_the_default_is_torchs_printed_form():
    ours, theirs = pair("LSTM", num_layers=2, bidirectional=True)
    assert repr(ours) == repr(theirs)
