"""How the rows of a series are divided among context, horizon, training and validation."""

from __future__ import annotations

import itertools

from recollect.errors import DataError


def validation_rows(rows: int, horizon: int, fraction: float) -> int:
    """Rows kept for validation: a share of them, at least one horizon, or none where ``fraction`` is 0."""
    return max(horizon, round(fraction * rows)) if fraction else 0


def choose_context_length(training_rows: int, horizon: int, season_length: int | None) -> int:
    """Three seasons (24 rows where none is known) and two horizons, less where the series is short."""
    wanted = max(2 * horizon, 3 * season_length if season_length else 24)
    # Of a short series, half stays for windows to begin in.
    return max(2, min(wanted, (training_rows - horizon) // 2))


def check_rows(rows: int, context_length: int, horizon: int, fraction: float) -> None:
    """Refuse a series whose rows before the validation part hold not even one window.

    Raises:
        DataError: names the number of rows that is enough.
    """
    window = context_length + horizon
    if rows - validation_rows(rows, horizon, fraction) >= window:
        return
    # Near the answer from below, so that few steps are left whatever the sizes.
    start = max(window + (horizon if fraction else 0), int((window - 1) / (1 - fraction)))
    enough = next(n for n in itertools.count(start) if n - validation_rows(n, horizon, fraction) >= window)
    raise DataError(
        "the series has too few rows to train on",
        given=f"{rows} rows",
        expected=f"at least {enough} rows, for a context of {context_length}, a horizon of {horizon} "
        "and a validation part",
        remedy="use a shorter horizon or context length, or more data",
    )
