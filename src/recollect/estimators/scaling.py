"""Scaling of windows, so that a network sees shapes and not levels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recollect.datasets import Series, read_series
from recollect.errors import DataError

# Below this share of the usual spread a context counts as flat, and its noise is not blown up.
_FLOOR = 0.1


@dataclass(frozen=True)
class WindowScaler:
    """Centres each window on the mean of its context and divides it by the context's spread.

    What a series does around its level is learned, and carries over to levels never seen in training: a
    trend goes on. (This is reversible instance normalisation, T. Kim et al., ICLR 2022, without its
    learned part.) The future of a window never enters its scale.

    Attributes:
        spread: the root mean square deviation within the contexts that it was fitted on, in data units;
            1.0 if they were constant.
    """

    spread: float

    @classmethod
    def fit(cls, contexts: np.ndarray) -> WindowScaler:
        """Measure the usual spread of ``contexts`` [n, context_length], training data only."""
        spread = float(np.sqrt(np.mean(np.var(contexts, axis=1))))
        return cls(spread or 1.0)

    def of(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The centre and scale of ``contexts`` [n, context_length], both [n, 1]; the scale is above 0."""
        scale = np.hypot(contexts.std(axis=1, keepdims=True), _FLOOR * self.spread)
        return contexts.mean(axis=1, keepdims=True), scale


def series_to_scale(y: Any) -> Series:
    """What a user calls a series, as one of float64 numbers that can be scaled.

    Raises:
        DataError: it has a value that is not finite, or beyond 1e150.
    """
    series = y if isinstance(y, Series) else read_series(y)
    values = np.asarray(series.values, dtype=np.float64)
    # Squares of greater numbers would overflow in the scaler.
    if values.ndim != 1 or not (np.abs(values) < 1e150).all():
        raise DataError(
            f"series {series.name!r} cannot be scaled",
            given=f"shape {list(values.shape)}, or a value that is not finite or is above 1e150",
            expected="finite numbers [n]",
            remedy="fill missing values, or change the unit",
        )
    return replace(series, values=values)
