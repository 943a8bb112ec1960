"""The pages of PackedSequence and of the functions that make and unmake one, as our layers meet them.

The functions are torch's own; what is checked is what their pages promise of "all RNN modules".
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
    unpad_sequence,
)

from against_torch import (
    TORCH_ERRORS,
    H,
    I,
    P,
    assert_same,
    drawn,
    dtypes,
    kinds,
    make,
    pair,
    projections_warn,
    states,
    tensors,
)
from recollect import nn
from recollect.errors import InputError
from tolerances import assert_bits, assert_equal

pytestmark = projections_warn

LENGTHS = {
    "unsorted": [2, 5, 1, 4],
    "sorted": [5, 4, 2, 1],
    "equal": [5, 5, 5, 5],
    "with ties": [3, 5, 3, 5],
    "all of one step": [1, 1, 1],
    "one sequence": [5],
}
lengths_ = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
given = pytest.mark.parametrize("given", [True, False], ids=["hx", "no hx"])
UNSORTED = LENGTHS["unsorted"]


def padded(lengths, dtype=torch.float64, value=0.0):
    """[T, B, I], with ``value`` past each length."""
    x = drawn(max(lengths), len(lengths), I, dtype=dtype)
    return x.masked_fill(torch.arange(len(x)).unsqueeze(1).ge(torch.tensor(lengths)).unsqueeze(2), value)


def packing(lengths, **options):
    return lambda x: pack_padded_sequence(x, torch.tensor(lengths), **({"enforce_sorted": False} | options))


# ---------------------------------------------------------------- PackedSequence


@kinds
@dtypes
@given
@lengths_
def test_all_rnn_modules_accept_packed_sequences(kind, dtype, given, lengths):
    """ "All RNN modules accept packed sequences as inputs"; hx and h_n are in the order of the caller's batch."""
    ours, theirs = pair(kind, dtype=dtype, bidirectional=True)
    hx = states(kind, 2, len(lengths), dtype=dtype) if given else None
    assert_same(ours, theirs, padded(lengths, dtype), hx, packing(lengths))


@kinds
@pytest.mark.parametrize(
    "options",
    [{"num_layers": 2, "bidirectional": True}, {"num_layers": 3}, {"bias": False}, {"batch_first": True}],
    ids=["two layers, two directions", "three layers", "bias=False", "batch_first"],
)
def test_packed_sequences_with_every_argument(kind, options):
    """A packed sequence has no batch dimension, so batch_first says nothing about it, and nothing about hx."""
    ours, theirs = pair(kind, dtype=torch.float64, **options)
    places = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    assert_same(ours, theirs, padded(UNSORTED), states(kind, places, len(UNSORTED)), packing(UNSORTED))


@kinds
@pytest.mark.parametrize("lengths", [LENGTHS["sorted"], LENGTHS["equal"]], ids=["sorted", "equal"])
def test_sorted_sequences(kind, lengths):
    """ "If enforce_sorted is True, the sequences should be sorted by length in a decreasing order": no permutation."""
    ours, theirs = pair(kind, dtype=torch.float64)
    hx = states(kind, 1, len(lengths))
    assert_same(ours, theirs, padded(lengths), hx, packing(lengths, enforce_sorted=True))
    y, _ = ours(packing(lengths, enforce_sorted=True)(padded(lengths)), hx)
    assert y.sorted_indices is None
    assert y.unsorted_indices is None


@kinds
@lengths_
def test_the_output_is_a_packed_sequence_of_the_same_form(kind, lengths):
    """ "If a PackedSequence has been given as the input, the output will also be a packed sequence": "batch_sizes
    should always be a CPU torch.int64 tensor", "sorted_indices and unsorted_indices must be torch.int64"."""
    layer = make(nn, kind, dtype=torch.float64)
    packed = packing(lengths)(padded(lengths))
    y, _ = layer(packed)
    assert isinstance(y, PackedSequence)
    assert y.data.shape == (sum(lengths), P if "proj_size" in kind else H)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        mine = getattr(y, name)
        assert (mine.dtype, mine.device.type) == (torch.int64, "cpu")
        assert_bits(mine, getattr(packed, name))


@kinds
def test_batch_sizes_are_elements_at_each_step(kind):
    """ "given data abc and x the PackedSequence would contain data axbc with batch_sizes=[2,1,1]": the output too."""
    ours, (abc, x) = make(nn, kind, dtype=torch.float64), (drawn(3, I, seed=1), drawn(1, I, seed=2))
    y, _ = ours(pack_sequence([abc, x]))
    a, b, c = ours(abc)[0]
    assert y.batch_sizes.tolist() == [2, 1, 1]
    assert_equal(y.data, torch.stack([a, ours(x)[0][0], b, c]))


@kinds
def test_a_packed_sequence_of_another_dtype(kind):
    """ "data can be ... of arbitrary dtype": it moves as a whole, and the layer with it."""
    ours, theirs = pair(kind)
    packed = packing(UNSORTED)(padded(UNSORTED, torch.float32))
    y, _ = ours.double()(packed.double())
    assert y.data.dtype == torch.float64
    assert_equal(y.data, theirs.double()(packed.to(torch.float64))[0].data)


# ---------------------------------------------------------------- pack_padded_sequence, pad_packed_sequence


@kinds
@pytest.mark.parametrize("as_tensor", [True, False], ids=["tensor", "list"])
@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_there_and_back(kind, batch_first, as_tensor):
    """ "It is an inverse operation to pack_padded_sequence"; "lengths (Tensor or list(int))"; "the input is expected in
    B x T x * format" - and the way through packing is the way through our lengths=."""
    layer = make(nn, kind, num_layers=2, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    x, hx = padded(UNSORTED), states(kind, 4, len(UNSORTED))
    x = x.transpose(0, 1) if batch_first else x
    lengths = torch.tensor(UNSORTED) if as_tensor else UNSORTED
    packed, final = layer(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False), hx)
    y, back = pad_packed_sequence(packed, batch_first)
    assert back.tolist() == UNSORTED
    expected, expected_final = layer(x, hx, lengths=lengths)
    assert_equal(y, expected)
    for mine, true in zip(tensors(final), tensors(expected_final), strict=True):
        assert_equal(mine, true)


@kinds
def test_what_lies_past_a_length_is_never_read(kind):
    """ "The dim of input tensor will be truncated if its length larger than correspond value in length"."""
    ours, theirs = pair(kind, dtype=torch.float64)
    assert_same(ours, theirs, padded(UNSORTED, value=torch.nan), None, packing(UNSORTED))
    assert_same(ours, theirs, padded(UNSORTED), None, packing([each - (each > 1) for each in UNSORTED]))


@kinds
def test_total_length_and_padding_value(kind):
    """ "padding_value: values for padded elements"; "the output will be padded to have length total_length"."""
    ours, theirs = pair(kind, dtype=torch.float64)
    packed = packing(UNSORTED)(padded(UNSORTED))
    mine, true = (pad_packed_sequence(layer(packed)[0], False, -7.0, 8) for layer in (ours, theirs))
    assert_equal(mine[0], true[0])
    assert (mine[0][5:] == -7.0).all()
    with pytest.raises(ValueError, match="total_length"):
        pad_packed_sequence(ours(packed)[0], total_length=4)


@kinds
def test_the_order_of_the_batch(kind):
    """ "Batch elements will be re-ordered as they were ordered originally": each row is what it is alone."""
    layer, x, hx = make(nn, kind, dtype=torch.float64), padded(UNSORTED), states(kind, 1, len(UNSORTED))
    packed, final = layer(packing(UNSORTED)(x), hx)
    y, _ = pad_packed_sequence(packed)
    for row, length in enumerate(UNSORTED):
        start = tuple(each[:, row] for each in tensors(hx))
        alone, last = layer(x[:length, row], start if isinstance(hx, tuple) else start[0])
        assert_equal(y[:length, row], alone)
        assert not y[length:, row].any()
        for mine, true in zip(tensors(final), tensors(last), strict=True):
            assert_equal(mine[:, row], true)


@kinds
def test_labels_packed_like_the_input(kind):
    """ "You can apply it to pack the labels, and use the output of the RNN with them to compute the loss directly"."""
    labels = packing(UNSORTED)(torch.arange(5 * len(UNSORTED)).view(5, -1) % 2)
    found = []
    for layer in pair(kind, dtype=torch.float64):
        y, _ = layer(packing(UNSORTED)(padded(UNSORTED)))
        torch.nn.functional.cross_entropy(y.data, labels.data).backward()
        found.append([each.grad for each in layer.parameters()])
    for mine, true in zip(*found, strict=True):
        assert_equal(mine, true)


# ---------------------------------------------------------------- lists of sequences


@kinds
@pytest.mark.parametrize("lengths", [LENGTHS["sorted"], UNSORTED], ids=["sorted", "unsorted"])
@torch.no_grad()
def test_lists_of_sequences(kind, lengths):
    """ "pack_sequence: Packs a list of variable length Tensors", "Consecutive call of the next functions: pad_sequence,
    pack_padded_sequence"; "unpack_sequence: Unpack PackedSequence into a list of variable length Tensors"."""
    layer = make(nn, kind, bidirectional=True, dtype=torch.float64)
    sequences = [drawn(length, I, seed=length) for length in lengths]
    packed = pack_sequence(sequences, enforce_sorted=lengths == LENGTHS["sorted"])
    unpacked = unpack_sequence(layer(packed)[0])
    assert [len(each) for each in unpacked] == lengths
    for mine, sequence in zip(unpacked, sequences, strict=True):
        assert_equal(mine, layer(sequence)[0])
    x = pad_sequence(sequences)
    y, _ = layer(x, lengths=lengths)
    for mine, true in zip(unpad_sequence(y, torch.tensor(lengths)), unpacked, strict=True):
        assert_equal(mine, true)


@kinds
@torch.no_grad()
def test_padding_on_the_left(kind):
    """ "padding_side: the side to pad the sequences on": on the left the padding is steps like any other, for torch and
    for us, and a final state is that of the last step."""
    ours, theirs = pair(kind, dtype=torch.float64, batch_first=True)
    sequences = [drawn(length, I, seed=length) for length in UNSORTED]
    x = pad_sequence(sequences, batch_first=True, padding_value=0.5, padding_side="left")
    for mine, true in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        assert_equal(mine, true)


# ---------------------------------------------------------------- calls that do not fit


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


def hidden(kind, *leading):
    h = zeros(*leading, P if "proj_size" in kind else H)
    return (h, zeros(*leading, H)) if kind.startswith("LSTM") else h


# torch's LSTM does not look at a packed input's features, nor at the batch and the layers of its states, and computes
# something; ours raises for every kind.
UNCHECKED = ("other number of features", "hx of another batch", "hx of more layers")
CALLS = {
    "other number of features": lambda layer, kind: layer(pack_sequence([zeros(2, I + 2)])),
    "hx of another batch": lambda layer, kind: layer(pack_sequence([zeros(2, I)]), hidden(kind, 1, 2)),
    "data of three dimensions": lambda layer, kind: layer(pack_sequence([zeros(2, 2, I)])),
    "data of one dimension": lambda layer, kind: layer(pack_sequence([zeros(2)])),
    "data of another dtype": lambda layer, kind: layer(pack_sequence([zeros(2, I).double()])),
    "2-D hx": lambda layer, kind: layer(pack_sequence([zeros(2, I)]), hidden(kind, 1)),
    "hx of more layers": lambda layer, kind: layer(pack_sequence([zeros(2, I)] * 2), hidden(kind, 2, 2)),
}


@kinds
@pytest.mark.parametrize("case", CALLS)
def test_a_call_that_torch_refuses(case, kind):
    """Where torch raises, an error of ours is raised."""
    ours, theirs = pair(kind)
    if case not in UNCHECKED or not kind.startswith("LSTM"):
        with pytest.raises(TORCH_ERRORS):
            CALLS[case](theirs, kind)
    with pytest.raises(InputError):
        CALLS[case](ours, kind)
