"""Forecasts that need no training: what every model has to beat.

Source: R. J. Hyndman, G. Athanasopoulos, *Forecasting: Principles and Practice*, 3rd ed. (2021), 5.2.
"""

from __future__ import annotations

import numpy as np


def naive(history: np.ndarray, horizon: int) -> np.ndarray:
    """The last value again and again: [horizon] from ``history`` [n], n >= 1."""
    return np.full(horizon, history[-1], dtype=np.float64)


def seasonal_naive(history: np.ndarray, horizon: int, season_length: int) -> np.ndarray:
    """The last whole season again and again: [horizon] from ``history`` [n], n >= season_length."""
    return np.resize(history[-season_length:].astype(np.float64), horizon)


def drift(history: np.ndarray, horizon: int) -> np.ndarray:
    """The line through the first and the last value, continued: [horizon] from ``history`` [n], n >= 2."""
    slope = (history[-1] - history[0]) / (len(history) - 1)
    return history[-1] + slope * np.arange(1, horizon + 1)
