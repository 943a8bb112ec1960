"""The time axis of a table: read, checked to be in order, and asked for its season."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import numpy as np

from recollect.datasets.values import find_missing
from recollect.errors import DataError

_YEAR_MONTH = re.compile(r"\d{4}-\d{2}")


def parse_time(column: np.ndarray, name: str) -> np.ndarray:
    """Read a time column [n] that is strictly increasing.

    Whole numbers (years, counters) stay integers. Dates and date-times, as such or as ISO 8601 text
    (``2020-01``, ``2020-01-31``, ``2020-01-31T12:00``, ``... 12:00+02:00``), become ``datetime64[us]``;
    one with an offset is turned into UTC.

    Raises:
        DataError: a time is missing or cannot be read, or the times are not in order, or one repeats;
            names the first such row.
    """
    kind = column.dtype.kind
    missing = np.flatnonzero(find_missing(column))
    if missing.size:
        raise _unreadable(name, int(missing[0]), "no time")
    if kind == "M":
        time = column.astype("datetime64[us]")
    elif kind in "iuf" or (column.size and _is_number(column[0])):
        time = np.array([_whole_number(item, row, name) for row, item in enumerate(column)], dtype=np.int64)
    else:
        time = np.array([_instant(item, row, name) for row, item in enumerate(column)], dtype="datetime64[us]")
    _check_order(time, column, name)
    return time


def infer_season_length(time: np.ndarray | None) -> int | None:
    """Guess the steps in one season from regular times.

    Args:
        time: ``datetime64`` [n] or integers [n], increasing; None is allowed.

    Returns:
        12 for monthly times (a year), 4 for quarterly (a year), 7 for daily (a week), 24 for hourly
        (a day). None for every other spacing, for times with gaps, for integers (their unit is not
        known) and for fewer than three times.
    """
    if time is None or time.dtype.kind != "M" or len(time) < 3:
        return None
    gaps = np.diff(time)
    months = np.diff(time.astype("datetime64[M]").astype(np.int64))
    days = gaps / np.timedelta64(1, "D")
    # Month ends differ by 28 to 31 days, so a month is counted on the calendar. The days beside it
    # tell the last day of a month followed by the first day of the next from a whole month.
    if (months == 1).all() and (days >= 28).all() and (days <= 31).all():
        return 12
    if (months == 3).all() and (days >= 89).all() and (days <= 92).all():
        return 4
    if (days == 1).all():
        return 7
    if (gaps == np.timedelta64(1, "h")).all():
        return 24
    return None


def _check_order(time: np.ndarray, column: np.ndarray, name: str) -> None:
    backwards = np.flatnonzero(time[1:] < time[:-1])
    if backwards.size:
        row = int(backwards[0]) + 1
        raise DataError(
            f"the times in column {name!r} are not sorted: row {row + 1} is earlier than row {row}",
            given=f"{column[row]} after {column[row - 1]}",
            expected="times that increase from row to row",
            remedy=f"sort the rows by {name!r}, or name the column that is the time",
        )
    repeated = np.flatnonzero(time[1:] == time[:-1])
    if repeated.size:
        row = int(repeated[0]) + 1
        raise DataError(
            f"the times in column {name!r} repeat: row {row + 1} has the same time as row {row}",
            given=f"{column[row - 1]} and {column[row]}",
            expected="one row for each time",
            remedy="keep one series and one row for each time, or name the column that is the time",
        )


def _is_number(item: Any) -> bool:
    try:
        float(item)
    except (TypeError, ValueError):
        return False
    return True


def _whole_number(item: Any, row: int, name: str) -> int:
    text = str(item).strip()
    try:
        # Through float only where it must be ("1700.0"), because float keeps 53 bits of an integer.
        number = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        number = float("nan")
    # Also refuses NaN.
    if not abs(number) < 2**63 or number != int(number):
        raise _unreadable(name, row, repr(text))
    return int(number)


def _instant(item: Any, row: int, name: str) -> dt.datetime:
    text = str(item).strip()
    try:
        instant = dt.datetime.fromisoformat(f"{text}-01" if _YEAR_MONTH.fullmatch(text) else text)
        return instant.astimezone(dt.UTC).replace(tzinfo=None) if instant.tzinfo else instant
    except (ValueError, OverflowError):  # the latter in the first and last hours of the calendar
        raise _unreadable(name, row, repr(text)) from None


def _unreadable(name: str, row: int, given: str) -> DataError:
    return DataError(
        f"column {name!r} has something that cannot be read as a time in row {row + 1}",
        given=given,
        expected="ISO 8601 such as 2020-01-31 or 2020-01-31T12:00, or whole numbers such as years",
        remedy="correct that row, rewrite the column in ISO 8601, or name another time column",
    )
