"""Errors of forecasts. All take arrays of one shape and average over all of it."""

from __future__ import annotations

import numpy as np


def mean_absolute_error(actual: np.ndarray, forecast: np.ndarray) -> float:
    """The mean of \\|actual - forecast\\|, in data units."""
    return float(np.mean(np.abs(actual - forecast)))


def root_mean_squared_error(actual: np.ndarray, forecast: np.ndarray) -> float:
    """The root of the mean of (actual - forecast)², in data units."""
    return float(np.sqrt(np.mean(np.square(actual - forecast))))


def mase_scale(history: np.ndarray, season_length: int | None = None) -> float:
    """What a mean absolute error is divided by to make it a MASE.

    It is the mean absolute error, one step ahead within ``history``, of the seasonal naive forecast, or
    of the naive one where there is no season. A MASE below 1 beats that forecast's error on the past.

    Source: R. J. Hyndman, A. B. Koehler, "Another look at measures of forecast accuracy",
    International Journal of Forecasting 22 (2006).

    Args:
        history: [n], n > season_length, in data units; only what the model was fitted on.
        season_length: steps in a season; None means 1.

    Returns:
        The scale in data units; 0.0 for a series that repeats itself exactly, which leaves MASE undefined.
    """
    lag = season_length or 1
    return float(np.mean(np.abs(history[lag:] - history[:-lag])))
