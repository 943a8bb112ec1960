"""Which lags to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recollect.errors import InputError


def log_spaced(first: int, last: int, most: int) -> NDArray[np.int64]:
    """At most so many whole numbers from ``first`` to ``last``, about evenly spaced in their logarithms."""
    if last - first < most:
        return np.arange(first, last + 1)
    start = max(first, 1)  # 0 has no logarithm
    spaced = np.geomspace(start, last, most - (start - first)).round().astype(np.int64)
    return np.unique(np.concatenate([[first], spaced]))


def checked(lags: Sequence[int], first: int, last: int) -> NDArray[np.int64]:
    """The lags that a caller asked for, in order and without repetition.

    Raises:
        InputError: they are not whole numbers from ``first`` to ``last``.
    """
    found = np.array(lags)
    if found.ndim != 1 or not len(found) or not np.issubdtype(found.dtype, np.integer):
        raise InputError("lags must be whole numbers", given=lags, expected=f"a list of them from {first} to {last}")
    if found.min() < first or found.max() > last:
        raise InputError(
            "a lag lies outside of the sequence",
            given=f"lags from {found.min()} to {found.max()}",
            expected=f"{first} to {last}, counted back from each row's last valid step",
        )
    return np.unique(found).astype(np.int64)
