"""Where rows stand: the table that kernels read, and the rows that loops take out, say the same."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from recollect.engine.layout import Layout, dense
from recollect.nn.rows import lay_out

LENGTHS = [3, 0, 5, 1, 5]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS, [6] * 5, [0] * 5])
def test_every_row_of_the_batch_has_one_place(batch_first, lengths):
    x = torch.arange(6 * 5).view(6, 5, 1) if not batch_first else torch.arange(6 * 5).view(5, 6, 1)
    layout = lay_out(x, lengths, batch_first=batch_first)
    assert sorted(layout.places) == list(range(30))
    assert layout.count == (30 if lengths is None else sum(lengths))
    taken = layout.take(x)
    assert taken.flatten().tolist() == layout.places[: layout.count].tolist()  # a row's number is its content
    valid = torch.arange(6).unsqueeze(1) < torch.tensor([6] * 5 if lengths is None else lengths)
    valid = (valid.T if batch_first else valid).unsqueeze(2)
    assert torch.equal(layout.restore(taken + 1), torch.where(valid, x + 1, 0))


def test_packed_rows_are_in_the_order_of_torch():
    x = torch.randn(5, 4, 2)
    lengths = torch.tensor([2, 5, 1, 5])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    layout = lay_out(x, lengths, batch_first=False)
    assert torch.equal(layout.take(x), packed.data)
    assert list(layout.sizes) == packed.batch_sizes.tolist()
    assert layout.places[: layout.count].tolist() == [
        step * 4 + row for step, size in enumerate(layout.sizes) for row in packed.sorted_indices[:size].tolist()
    ]
    own = lay_out(packed, None, batch_first=False)
    assert own.take(packed.data) is packed.data
    assert own.places.tolist() == list(range(13))


@pytest.mark.parametrize(
    "give",
    [
        list,
        tuple,
        lambda lengths: torch.tensor(lengths, dtype=torch.int32),
        lambda lengths: torch.tensor(lengths, dtype=torch.uint8),
        lambda lengths: torch.tensor([lengths, lengths]).T[:, 1],  # every other number in memory
    ],
)
def test_lengths_are_whole_numbers_of_any_kind(give):
    x = torch.randn(6, 5, 2)
    layout, expected = (lay_out(x, lengths, batch_first=False) for lengths in (give(LENGTHS), torch.tensor(LENGTHS)))
    assert layout.places.tolist() == expected.places.tolist()
    assert layout.sizes == expected.sizes == [4, 3, 3, 2, 2]
    assert (layout.shortest, layout.longest, layout.rows.begun) == (0, 5, 4)


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_order_is_that_of_a_stable_sort(batch_first):
    generator = torch.Generator().manual_seed(3)
    for steps, batch in ((1, 1), (7, 40), (50, 6), (3, 200)):
        lengths = torch.randint(0, steps + 1, (batch,), generator=generator)
        order = torch.sort(lengths, descending=True, stable=True).indices
        rows = [(t, row) for t in range(steps) for row in order.tolist()]
        rows.sort(key=lambda each: each[0] >= lengths[each[1]])  # padding goes last
        x = torch.empty(*((batch, steps) if batch_first else (steps, batch)), 1)
        layout = lay_out(x, lengths, batch_first=batch_first)
        assert layout.places.tolist() == [row * steps + t if batch_first else t * batch + row for t, row in rows]


def test_states_are_sorted_and_unsorted():
    x, state = torch.randn(5, 5, 2), torch.randn(2, 5, 3)
    layout = lay_out(x, LENGTHS, batch_first=False)
    assert torch.equal(layout.sort(state)[:, :2], state[:, [2, 4]])
    assert torch.equal(layout.unsort(layout.sort(state)), state)
    assert dense(5, 5).sort(state) is state


def test_lengths_in_order_need_no_sorting():
    x, state = torch.randn(5, 3, 2), torch.randn(2, 3, 3)
    layout = lay_out(x, [5, 2, 2], batch_first=False)
    assert layout.sort(state) is layout.unsort(state) is state
    assert not layout.dense
    assert torch.equal(layout.take(x), pack_padded_sequence(x, torch.tensor([5, 2, 2])).data)


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_that_leave_nothing_out_are_a_dense_batch(batch_first):
    x = torch.randn(*((3, 5) if batch_first else (5, 3)), 2)
    assert lay_out(x, [5, 5, 5], batch_first=batch_first) is dense(3, 5, batch_first=batch_first)


def test_a_dense_layout_is_kept_unless_it_is_large():
    assert dense(3, 4) is dense(3, 4)
    assert dense(3, 4).kept
    assert dense(3, 4) is not dense(3, 4, batch_first=True)
    assert dense(1000, 1000) is not dense(1000, 1000)
    assert not dense(1000, 1000).kept
    assert not Layout([3, 3], 3).dense  # packed
