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
