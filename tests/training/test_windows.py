"""Windows and splits: what is paired with what, and that nothing leaks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect.errors import DataError, InputError
from recollect.training import sliding_windows, split_by_time

SERIES = np.arange(10.0)


def test_windows_written_out():
    contexts, targets = sliding_windows(SERIES, context_length=3, horizon=2, stride=2)
    assert contexts.tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert targets.tolist() == [[3, 4], [5, 6], [7, 8]]
    assert np.shares_memory(contexts, SERIES)
    assert np.shares_memory(targets, SERIES)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 5), st.integers(0, 30))
def test_the_number_of_windows(context_length, horizon, stride, spare):
    values = np.arange(context_length + horizon + spare, dtype=np.float32)
    contexts, targets = sliding_windows(values, context_length, horizon, stride)
    assert contexts.shape == (spare // stride + 1, context_length)
    assert targets.shape == (spare // stride + 1, horizon)
    assert (targets[:, 0] - contexts[:, -1] == 1).all()


def test_too_short_says_how_many_rows_are_needed():
    with pytest.raises(DataError, match=r"10 rows.*at least 11: 8 of context and 3 ahead"):
        sliding_windows(SERIES, 8, 3)


@pytest.mark.parametrize("values", [SERIES.reshape(5, 2), np.arange(10), [1.0, 2.0, 3.0]])
def test_only_one_floating_series(values):
    with pytest.raises(InputError, match="1-D"):
        sliding_windows(values, 1, 1)


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1.5, 1, 1), (True, 1, 1)])
def test_bad_sizes(arguments):
    with pytest.raises(InputError, match="whole number"):
        sliding_windows(SERIES, *arguments)


@given(rows=st.integers(60, 200), context_length=st.integers(1, 12), horizon=st.integers(1, 8))
def test_no_target_is_in_two_parts_and_none_is_lost(rows, context_length, horizon):
    values = np.arange(rows, dtype=float)
    parts = split_by_time(rows, (0.6, 0.2, 0.2))
    seen = []
    for part in parts:
        contexts, targets = sliding_windows(values, context_length, horizon, target_rows=part)
        rows_seen = set(targets.ravel().astype(int))
        assert rows_seen <= set(range(rows)[part])
        assert (contexts[:, -1] + 1 == targets[:, 0]).all()
        seen.append(rows_seen)
    assert sum(map(len, seen)) == len(set.union(*seen)) == rows - context_length


def test_split_written_out():
    assert split_by_time(10, (0.7, 0.2, 0.1)) == (slice(0, 7), slice(7, 9), slice(9, 10))
    assert split_by_time(10, (6, 4)) == (slice(0, 6), slice(6, 10))


@given(st.integers(100, 10_000), st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_fractions_cover_every_row_once(rows, weights):
    parts = split_by_time(rows, [weight / sum(weights) for weight in weights])
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))


@pytest.mark.parametrize("parts", [(), (0.5, 0.4), (5, 4), (1.2, -0.2), (10, 0), (0.5, 0.5, 0.0)])
def test_parts_that_do_not_make_up_the_whole(parts):
    with pytest.raises(InputError, match="whole series"):
        split_by_time(10, parts)


def test_a_part_without_rows():
    with pytest.raises(DataError, match="empty"):
        split_by_time(3, (0.9, 0.1))
