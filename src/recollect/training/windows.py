"""Windows over one series, and a split of its rows that respects time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from recollect.errors import DataError, InputError
from recollect.training._arguments import whole_number


def sliding_windows(
    values: NDArray[np.floating],
    context_length: int,
    horizon: int,
    stride: int = 1,
    *,
    target_rows: slice | None = None,
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Pair every ``context_length`` consecutive values with the ``horizon`` values that follow them.

    Args:
        values: the series, [rows], floating point.
        context_length: values a forecast looks back on.
        horizon: values it looks ahead.
        stride: rows between one window and the next.
        target_rows: the rows that targets may lie in, such as one part of :func:`split_by_time`; None
            means all. Contexts may reach back before them: at forecasting time the past is known.

    Returns:
        ``contexts`` [n, context_length] and ``targets`` [n, horizon], read-only views of ``values``.

    Raises:
        InputError: an argument that is not a whole number above 0, or ``values`` not 1-D floating point.
        DataError: too few rows for a single window.
    """
    context_length = whole_number("context_length", context_length, at_least=1)
    horizon = whole_number("horizon", horizon, at_least=1)
    stride = whole_number("stride", stride, at_least=1)
    if not isinstance(values, np.ndarray) or values.ndim != 1 or not np.issubdtype(values.dtype, np.floating):
        shape = f"{values.dtype} array of shape {list(values.shape)}" if isinstance(values, np.ndarray) else None
        raise InputError(
            "windows are cut from one series of floating-point numbers",
            given=shape or type(values).__name__,
            expected="a 1-D array of float32 or float64",
            remedy="numpy.asarray(values, dtype=float)",
        )
    if target_rows is not None:
        start, stop, _ = target_rows.indices(len(values))
        values = values[max(0, start - context_length) : stop]
    if len(values) < context_length + horizon:
        raise DataError(
            "the series is too short for one window",
            given=f"{len(values)} rows",
            expected=f"at least {context_length + horizon}: {context_length} of context and {horizon} ahead",
            remedy="use a shorter context_length or horizon, or more data",
        )
    windows = sliding_window_view(values, context_length + horizon)[::stride]
    return windows[:, :context_length], windows[:, context_length:]


def split_by_time(rows: int, parts: Sequence[float]) -> tuple[slice, ...]:
    """Cut rows in order of time into consecutive parts, the earliest first.

    No row is in two parts, so with ``sliding_windows(..., target_rows=part)`` no target of one part is a
    target of another. Fit a scaler on ``values[parts[0]]`` only.

    Args:
        rows: the number of rows.
        parts: row counts that add up to ``rows`` when all are int, else fractions that add up to 1.

    Returns:
        One slice a part, such as training, validation and test.

    Raises:
        InputError: ``parts`` is neither of the two.
        DataError: a fraction is too small to be one row.
    """
    rows = whole_number("rows", rows, at_least=1)
    counted = all(isinstance(part, int) for part in parts)
    whole = rows if counted else 1
    if not parts or min(parts) <= 0 or not math.isclose(sum(parts), whole, rel_tol=1e-9):
        raise InputError(
            "the parts do not make up the whole series",
            given=f"parts={tuple(parts)} of {rows} rows",
            expected=f"row counts above 0 that add up to {rows}, or fractions above 0 that add up to 1",
        )
    # The running total is rounded, not each part, so that no row is lost or counted twice.
    bounds = [0, *(round(total * rows / whole) for total in itertools.accumulate(parts))]
    if any(start == stop for start, stop in itertools.pairwise(bounds)):
        raise DataError(
            "a part of the split would be empty",
            given=f"parts={tuple(parts)} of {rows} rows",
            remedy="use more data",
        )
    return tuple(slice(start, stop) for start, stop in itertools.pairwise(bounds))
