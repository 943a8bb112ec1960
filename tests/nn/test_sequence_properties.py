"""What holds for every sequence: chunks, steps, padding, the order of rows. Over examples, on the llvm backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import recollect
from recollect import cells, nn
from tolerances import GRADIENT, assert_bits, assert_equal

few = settings(max_examples=12, deadline=None, derandomize=True)
names = st.sampled_from(cells.__all__)
sizes = st.integers(1, 9)


@pytest.fixture(autouse=True)
def _llvm():
    with recollect.set_backend("llvm"):
        yield


def make(name, both_ways=False, seed=0, **options):
    torch.manual_seed(seed)
    return nn.Recurrent(
        cells.by_name(name), 3, 4, num_layers=2, bidirectional=both_ways, dtype=torch.float64, **options
    )


def drawn(steps, batch):
    return torch.randn(steps, batch, 3, dtype=torch.float64)


def each_state(state):
    return list(state) if isinstance(state, tuple) else [state]


@given(names, st.lists(st.integers(1, 5), min_size=1, max_size=4), sizes)
@few
def test_a_sequence_in_chunks_equals_the_whole(name, chunks, batch):
    layer, x = make(name), drawn(sum(chunks), batch)
    whole, final = layer(x)
    parts, state = [], None
    for chunk in x.split(chunks):
        y, state = layer(chunk, state)
        parts.append(y)
    assert_bits(torch.cat(parts), whole)
    for mine, true in zip(each_state(state), each_state(final), strict=True):
        assert_bits(mine, true)


@given(names, sizes, sizes)
@few
def test_step_by_step_equals_the_sequence(name, steps, batch):
    layer, x = make(name), drawn(steps, batch)
    whole, _ = layer(x)
    state = None
    with torch.no_grad():
        for t in range(steps):
            y, state = layer(x[t : t + 1], state)
            assert_equal(y[0], whole[t].detach())


@given(names, sizes, st.integers(1, 9), st.randoms(use_true_random=False))
@few
def test_permuting_the_batch_commutes(name, steps, batch, random):
    layer, x = make(name, both_ways=True), drawn(steps, batch)
    order = random.sample(range(batch), batch)
    y, state = layer(x)
    other, other_state = layer(x[:, order])
    assert_bits(other, y[:, order])
    for mine, true in zip(each_state(other_state), each_state(state), strict=True):
        assert_bits(mine, true[:, order])


@given(names, st.lists(st.integers(0, 7), min_size=1, max_size=6), st.booleans())
@few
def test_padding_never_changes_anything(name, lengths, batch_first):
    """Each row alone, cut to its length, is the truth; the padding is NaN and must reach nothing."""
    layer = make(name, both_ways=True, batch_first=batch_first)
    steps = 7
    x = drawn(steps, len(lengths))
    valid = torch.arange(steps).unsqueeze(1) < torch.tensor(lengths)
    padded = torch.where(valid.unsqueeze(2), x, torch.nan)
    leaf = (padded.transpose(0, 1) if batch_first else padded).clone().requires_grad_()
    shape = (4, len(lengths), 4)
    initial = [torch.rand(shape, dtype=torch.float64).add_(0.5).requires_grad_() for _ in layer.cell.states]
    y, final = layer(leaf, initial, lengths=torch.tensor(lengths))
    loss = y.square().sum() + sum(each.square().sum() for each in each_state(final))
    gradient, *initial_gradients = torch.autograd.grad(loss, [leaf, *initial])
    if batch_first:
        y, gradient = y.transpose(0, 1), gradient.transpose(0, 1)
    assert (y[~valid] == 0).all()
    assert (gradient[~valid] == 0).all()
    layer.batch_first = False
    for row, length in enumerate(lengths):
        mine = [each[:, row] for each in each_state(final)]
        starts = [each[:, row : row + 1] for each in initial]
        if length == 0:
            for end, start, its_gradient in zip(mine, starts, initial_gradients, strict=True):
                assert_bits(end, start[:, 0])
                assert_equal(its_gradient[:, row], 2 * start[:, 0], GRADIENT)
            continue
        alone = x[:length, row : row + 1].clone().requires_grad_()
        own = [each.detach().clone().requires_grad_() for each in starts]
        true, true_final = layer(alone, own)
        assert_equal(y[:length, row], true[:, 0])
        for end, each in zip(mine, each_state(true_final), strict=True):
            assert_equal(end, each[:, 0])
        loss = true.square().sum() + sum(each.square().sum() for each in each_state(true_final))
        true_gradient, *true_initial = torch.autograd.grad(loss, [alone, *own])
        assert_equal(gradient[:length, row], true_gradient[:, 0], GRADIENT)
        for each, its_truth in zip(initial_gradients, true_initial, strict=True):
            assert_equal(each[:, row], its_truth[:, 0], GRADIENT)


@given(names, st.lists(st.integers(0, 7), min_size=1, max_size=6))
@few
def test_padding_never_changes_a_gradient_of_the_parameters(name, lengths):
    layer = make(name, both_ways=True)
    x = drawn(7, len(lengths))
    valid = torch.arange(7).unsqueeze(1) < torch.tensor(lengths)
    found = []
    for padding in (0.0, torch.nan):
        layer.zero_grad()
        layer(torch.where(valid.unsqueeze(2), x, padding), lengths=lengths)[0].square().sum().backward()
        found.append([each.grad for each in layer.parameters()])
    for clean, padded in zip(*found, strict=True):
        assert_bits(padded, clean)


@given(names, st.lists(st.integers(1, 7), min_size=1, max_size=6))
@few
def test_lengths_equal_a_packed_sequence(name, lengths):
    layer = make(name, both_ways=True)
    x = drawn(max(lengths), len(lengths)).requires_grad_()
    y, state = layer(x, lengths=torch.tensor(lengths))
    packed, packed_state = layer(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
    true = pad_packed_sequence(packed)[0]
    assert_bits(y, true)
    for mine, other in zip(each_state(state), each_state(packed_state), strict=True):
        assert_bits(mine, other)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    (true_gradient,) = torch.autograd.grad(true.square().sum(), x)
    assert_equal(gradient, true_gradient, GRADIENT)


@given(names, st.lists(st.integers(0, 7), min_size=2, max_size=6), st.randoms(use_true_random=False))
@few
def test_the_order_of_the_lengths_does_not_matter(name, lengths, random):
    layer, x = make(name, both_ways=True), drawn(7, len(lengths))
    order = random.sample(range(len(lengths)), len(lengths))
    y, _ = layer(x, lengths=lengths)
    other, _ = layer(x[:, order], lengths=[lengths[row] for row in order])
    assert_equal(other, y[:, order])


@given(names, sizes, sizes)
@few
def test_full_lengths_equal_none(name, steps, batch):
    layer, x = make(name, both_ways=True), drawn(steps, batch)
    (y, state), (true, true_state) = layer(x, lengths=[steps] * batch), layer(x)
    assert_bits(y, true)
    for mine, other in zip(each_state(state), each_state(true_state), strict=True):
        assert_bits(mine, other)


@given(names, sizes, sizes)
@few
def test_the_reverse_direction_is_the_forward_one_on_the_reversed_sequence(name, steps, batch):
    layer, x = make(name, both_ways=True), drawn(steps, batch)
    one_way = nn.Recurrent(layer.cell, 3, 4, dtype=torch.float64)
    one_way.load_state_dict({each: layer.state_dict()[f"{each}_reverse"] for each in one_way.state_dict()}, strict=True)
    first = nn.Recurrent(layer.cell, 3, 4, bidirectional=True, dtype=torch.float64)
    first.load_state_dict({each: layer.state_dict()[each] for each in first.state_dict()})
    assert_bits(first(x)[0][:, :, 4:], one_way(x.flip(0))[0].flip(0))


@pytest.mark.parametrize("given_as", ["list", "tuple", "int32 tensor", "int64 tensor", "uint8 tensor"])
def test_forms_of_lengths(given_as):
    layer, x, lengths = make("lstm"), drawn(5, 3), [2, 5, 0]
    forms = {"list": lengths, "tuple": tuple(lengths)}
    kind = given_as.split()[0]
    value = forms[kind] if kind in forms else torch.tensor(lengths, dtype=getattr(torch, kind))
    assert_bits(layer(x, lengths=value)[0], layer(x, lengths=torch.tensor(lengths))[0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("length", [0, 2, 5])
def test_a_length_for_an_unbatched_sequence(batch_first, length):
    layer, x = make("gru", batch_first=batch_first), drawn(5, 1)[:, 0]
    y, h = layer(x, lengths=[length])
    assert y.shape == (5, 4)
    assert (y[length:] == 0).all()
    if length:
        true, true_h = layer(x[:length])
        assert_bits(y[:length], true)
        assert_bits(h, true_h)
