"""The numbers in a column: read as float64, missing ones filled on request."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import numpy as np

from recollect.errors import DataError

FILLS = ("linear", "forward")

_MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "nat", "<na>", "null", "none"})


def find_missing(column: np.ndarray) -> np.ndarray:
    """Mark the entries of a column [n] that stand for no value: NaN, NaT, None, empty text, words such as NA.

    Returns:
        bool [n].
    """
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype.kind in "mM":
        return np.isnat(column)
    if column.dtype.kind in "OU":
        # str() covers None, NaN and pandas' NA, which answers no comparison.
        return np.array([str(item).strip().lower() in _MISSING_WORDS for item in column], dtype=bool)
    return np.zeros(len(column), dtype=bool)


def parse_values(column: np.ndarray, name: str) -> np.ndarray:
    """Read a column as float64 [n], with NaN where a value is missing.

    Raises:
        DataError: an entry is not a number; names the first such row.
    """
    if column.dtype.kind in "iuf":
        return column.astype(np.float64)
    values = np.full(len(column), np.nan)
    for row in np.flatnonzero(~find_missing(column)):
        item = column[row]
        try:
            # Truth values, time spans and complex numbers convert to float, but are not measurements.
            if column.dtype.kind not in "OU" or isinstance(item, bool | np.bool_):
                raise TypeError
            values[row] = float(item)
        except (TypeError, ValueError):
            raise DataError(
                f"column {name!r} has something that is not a number in row {row + 1}",
                given=repr(str(item)),
                expected="numbers such as 3.5 or 1e-3, without units or thousands separators",
                remedy="correct that row, write decimals with a point, or name another target column",
            ) from None
    return values


def fill_gaps(values: np.ndarray, fill: str | None, name: str) -> np.ndarray:
    """Return ``values`` [n] without NaN.

    Args:
        values: float64 [n], NaN where missing.
        fill: None refuses missing values; ``"linear"`` draws a straight line between the neighbours,
            with rows as equal steps; ``"forward"`` repeats the last known value.
        name: the column, for the error.

    Raises:
        DataError: a value is infinite, is missing with no ``fill``, or cannot be filled that way.
    """
    if fill is not None and fill not in FILLS:
        raise DataError(
            "unknown way to fill missing values",
            given=repr(fill),
            expected="fill=None, 'linear' or 'forward'",
            remedy=suggest(str(fill), FILLS),
        )
    infinite = np.flatnonzero(np.isinf(values))
    if infinite.size:
        raise DataError(
            f"column {name!r} has {_count(infinite.size, 'infinite value')}, first in row {infinite[0] + 1}",
            given=f"{values[infinite[0]]}",
            expected="finite numbers",
            remedy="replace them by numbers, or leave them empty and fill them",
        )
    missing = np.isnan(values)
    if not missing.any():
        return values
    known = np.flatnonzero(~missing)
    if known.size == 0:
        raise DataError(
            f"column {name!r} has no values at all",
            given=f"{len(values)} rows, all empty",
            expected="numbers",
            remedy="name another target column",
        )
    if fill is None:
        first = int(np.argmax(missing))
        raise DataError(
            f"column {name!r} has {_count(missing.sum(), 'missing value')}, the first in row {first + 1}",
            given=f"{missing.sum()} of {len(values)} rows are empty or NaN",
            expected="a value in every row",
            remedy="fill them with --fill linear|forward (in Python fill='linear' or fill='forward')",
        )
    first, last = known[0], known[-1]
    if first > 0:
        raise DataError(
            f"fill={fill!r} cannot fill the start of column {name!r}, because no value comes before it",
            given=f"{_count(first, 'row')} missing at the start",
            expected="a value in row 1",
            remedy=f"remove the rows before row {first + 1}",
        )
    rows = np.arange(len(values))
    if fill == "forward":
        return values[np.maximum.accumulate(np.where(missing, 0, rows))]
    if last < len(values) - 1:
        raise DataError(
            f"fill='linear' cannot fill the end of column {name!r}, because no value comes after it",
            given=f"{_count(len(values) - 1 - last, 'row')} missing at the end",
            expected=f"a value in row {len(values)}",
            remedy=f"remove the rows after row {last + 1}, or use --fill forward (in Python fill='forward')",
        )
    return np.interp(rows, known, values[known])


def suggest(word: str, choices: Iterable[str], otherwise: str | None = None) -> str:
    """A remedy that names the choice nearest to ``word``; if none is near, ``otherwise`` or all choices."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return otherwise or f"choose one of: {', '.join(map(repr, choices))}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
