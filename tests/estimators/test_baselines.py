"""Baselines, metrics and times against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from recollect.estimators import future_times
from recollect.estimators.baselines import drift, naive, seasonal_naive
from recollect.estimators.metrics import mase_scale, mean_absolute_error, root_mean_squared_error


def test_naive_is_exact_on_a_constant():
    assert_array_equal(naive(np.full(5, 3.5), 4), [3.5] * 4)


@pytest.mark.parametrize("horizon", [1, 4, 5, 13])
def test_seasonal_naive_is_exact_on_a_periodic_series(horizon):
    season = np.array([1.0, 5.0, -2.0, 4.0, 0.0])
    whole = np.resize(season, 13 + horizon)
    assert_array_equal(seasonal_naive(whole[:13], horizon, 5), whole[13:])


@pytest.mark.parametrize("horizon", [1, 7])
def test_drift_is_exact_on_a_line(horizon):
    line = 3.0 - 0.25 * np.arange(9 + horizon)
    assert_allclose(drift(line[:9], horizon), line[9:], rtol=1e-15)


def test_season_of_one_is_naive():
    history = np.random.default_rng(0).normal(size=20)
    assert_array_equal(seasonal_naive(history, 6, 1), naive(history, 6))
    assert mase_scale(history, 1) == mase_scale(history, None)


def test_errors_in_hand_made_numbers():
    actual, forecast = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 2.0], [0.0, 8.0]])
    assert mean_absolute_error(actual, forecast) == 7 / 4
    assert root_mean_squared_error(actual, forecast) == 5 / 2
    assert mase_scale(np.array([1.0, 3.0, 2.0, 7.0])) == (2 + 1 + 5) / 3
    assert mase_scale(np.array([1.0, 3.0, 2.0, 7.0]), 2) == (1 + 4) / 2


def days(*texts):
    return np.array(texts, "datetime64[us]")


@pytest.mark.parametrize(
    ("time", "following"),
    [
        (np.array([1700, 1701, 1702]), np.array([1703, 1704])),
        (np.array([0, 5, 10]), np.array([15, 20])),
        (days("2024-02-27", "2024-02-28"), days("2024-02-29", "2024-03-01")),
        (days("2023-10-01", "2023-11-01", "2023-12-01"), days("2024-01-01", "2024-02-01")),
        (days("2023-10-31", "2023-11-30", "2023-12-31"), days("2024-01-31", "2024-02-29")),
        (days("2023-06-30", "2023-09-30", "2023-12-31"), days("2024-03-31", "2024-06-30")),
        (days("2019-03-15", "2020-03-15", "2021-03-15"), days("2022-03-15", "2023-03-15")),
        (days("2024-01-01T22:00", "2024-01-01T23:00"), days("2024-01-02T00:00", "2024-01-02T01:00")),
    ],
    ids=["years", "fives", "days", "months", "month ends", "quarter ends", "yearly", "hours"],
)
def test_regular_times_go_on(time, following):
    found = future_times(time, 2)
    assert found is not None
    assert found.dtype == time.dtype
    assert_array_equal(found, following)


@pytest.mark.parametrize(
    "time",
    [
        None,
        np.array([1700]),
        np.array([1700, 1701, 1703]),
        days("2024-01-04", "2024-01-05", "2024-01-08"),
        days("2024-01-10", "2024-02-11", "2024-03-10"),
        days("2024-01-01", "2024-02-01", "2024-04-01"),
    ],
    ids=["none", "one", "gap", "working days", "other days of the month", "month missing"],
)
def test_irregular_times_do_not(time):
    assert future_times(time, 3) is None
