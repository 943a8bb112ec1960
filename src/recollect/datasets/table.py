"""A table, wherever it is, and the one series wanted from it."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from narwhals.exceptions import DuplicateError

from recollect.datasets import embedded
from recollect.datasets.csv_file import read_columns
from recollect.datasets.series import Series
from recollect.datasets.time_axis import infer_season_length, parse_time
from recollect.datasets.values import fill_gaps, parse_values, suggest
from recollect.errors import DataError

TIME_NAMES = ("time", "date", "datetime", "ds", "timestamp", "year", "month")
"""Names of a column, in any case, that make it the time axis; an earlier one goes before a later one."""

Columns = dict[str, np.ndarray]

# Also 2,5 and 1,000.5, which parse_values refuses with a sentence that says why.
_NUMBER = re.compile(r"[+-]?(\d[\d,]*\.?\d*|\.\d+)([eE][+-]?\d+)?")


def read_series(data: Any, target: str | None = None, *, time: str | None = None, fill: str | None = None) -> Series:
    """Read one series from a file, a table or an array.

    Errors name rows as a person counts them: the first row of data is row 1.

    Args:
        data: one of

            - the path of a CSV file (UTF-8, separated by commas, semicolons or tabs) or of a
              ``.parquet`` file;
            - the name of an embedded series, where no such file exists;
            - a pandas or polars DataFrame;
            - a pandas or polars Series, or a one-dimensional array or list.
        target: the column with the values. May be left out where one column besides the time holds
            numbers. For a Series, an array or a list it is only a label.
        time: the column with the times: whole numbers such as years, which stay integers, or dates and
            date-times (ISO 8601 where they are text). Where it is left out it is the column with the
            first of the names in `TIME_NAMES`; or else a first column without a name, as pandas writes
            its index; or else the only column of a date type. A pandas index counts as a column, the
            first, where it has a name or holds date-times. Without any, the series has no times.
        fill: what to do where values are missing: None refuses them, ``"linear"`` draws a straight line
            between the neighbours (rows as equal steps), ``"forward"`` repeats the last known value.

    Returns:
        The series, its ``season_length`` set where `infer_season_length` can tell.

    Raises:
        DataError: the file or column is not there or cannot be read; a value is missing, infinite or
            not a number; the times are unreadable, not sorted or repeat; or there are no rows.
    """
    if not isinstance(data, str | os.PathLike):
        columns, label, only = _columns_in_memory(data, target)
        return _pick(columns, only or target, time, fill, label=label, source=f"{label} in memory")
    # Not Path.is_file, which lets a name that is too long escape as an OSError.
    place = str(data)
    if place in embedded.names() and not os.path.isfile(place):
        known = embedded.load(place)
        series = _pick(embedded.columns(place), target, time, fill, label=place, source=known.source)
        if series.name != known.name:
            return series
        return replace(series, season_length=known.season_length, description=known.description)
    path = Path(place)
    return _pick(_columns_in_file(path), target, time, fill, label=path.name, source=str(path))


def _pick(
    columns: Columns, target: str | None, time: str | None, fill: str | None, *, label: str, source: str
) -> Series:
    if not columns or len(next(iter(columns.values()))) == 0:
        raise DataError(
            f"{label} has no rows",
            given=f"the columns {', '.join(columns)}" if columns else "no columns",
            expected="at least one row",
            remedy="check where the data come from",
        )
    for column, role in ((target, "target"), (time, "time")):
        if column is not None and column not in columns:
            raise DataError(
                f"{label} has no column {column!r}",
                given=f"{role}={column!r}",
                expected=f"one of its columns: {', '.join(map(repr, columns))}",
                remedy=suggest(column, columns),
            )
    if target is not None and target == time:
        raise DataError(
            "the target and the time are the same column",
            given=f"target={target!r}, time={time!r}",
            expected="two columns",
            remedy="name the column with the values as target",
        )
    time = _find_time(columns, target) if time is None else time
    target = _find_target(columns, time, label) if target is None else target
    axis = None if time is None else parse_time(columns[time], time)
    return Series(
        name=target,
        values=fill_gaps(parse_values(columns[target], target), fill, target),
        time=axis,
        season_length=infer_season_length(axis),
        description=f"column {target!r} of {label}",
        source=source,
    )


def _find_time(columns: Columns, target: str | None) -> str | None:
    candidates = [name for name in columns if name != target]
    for wanted in TIME_NAMES:
        for name in candidates:
            if name.lower() == wanted:
                return name
    if candidates[:1] == [""]:
        return ""
    dates = [name for name in candidates if columns[name].dtype.kind == "M"]
    return dates[0] if len(dates) == 1 else None


def _find_target(columns: Columns, time: str | None, label: str) -> str:
    # A column without a name is an index that was written out, never what one wants to forecast.
    others = [name for name in columns if name not in (time, "")]
    numeric = [name for name in others if _holds_numbers(columns[name])]
    if len(numeric) == 1:
        return numeric[0]
    # A lone column is the one that is meant: what is wrong with it is a better answer than this error.
    if len(others) == 1:
        return others[0]
    raise DataError(
        f"{label} has {len(numeric) or 'no'} columns of numbers besides the time",
        given=f"the columns {', '.join(map(repr, columns))}",
        expected="exactly one, or the name of the target",
        remedy=f"name it with --target COL (in Python target='{(numeric or others or ['y'])[0]}')",
    )


def _holds_numbers(column: np.ndarray) -> bool:
    """Whether a column is one of numbers, though some of them may be missing or misspelt.

    Lenient, because a column passed over in silence for one bad entry would make another the target.
    """
    if column.dtype.kind not in "OU":
        return column.dtype.kind in "iuf"
    return any(_NUMBER.fullmatch(str(item).strip()) for item in column)


def _columns_in_file(path: Path) -> Columns:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            "there is no such file",
            given=repr(str(path)),
            expected=f"the path of a CSV file, or an embedded series: {', '.join(embedded.names())}",
            remedy=_nearest_file(path),
        ) from None
    except IsADirectoryError:
        raise DataError(
            f"{path} is a folder", expected="the path of a CSV file", remedy="name a file in that folder"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            "the file cannot be read",
            given=f"{str(path)[:80]!r}: {getattr(error, 'strerror', None) or error}",
            expected="the path of a CSV file that you may read",
            remedy="check the path and its permissions",
        ) from error
    if path.suffix.lower() != ".parquet":
        return read_columns(data, path.name)
    import polars as pl

    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{path.name} cannot be read as Parquet",
            given=str(error).partition("\n")[0],
            expected="a Parquet file that is whole",
            remedy="write the file again, or export the table as CSV",
        ) from error
    return _columns_in_memory(frame, None)[0]


def _nearest_file(path: Path) -> str:
    known = list(embedded.names())
    with contextlib.suppress(OSError):
        known += os.listdir(path.parent)
    return suggest(path.name, known, otherwise="check the path")


def _columns_in_memory(data: Any, label: str | None) -> tuple[Columns, str, str | None]:
    """Columns of an object, what to call it, and, where it is one column only, that column's name."""
    kind = type(data).__name__
    package = type(data).__module__.partition(".")[0]
    described = f"a {kind}" if package == "builtins" else f"a {package} {kind}"
    try:
        table = nw.from_native(data, allow_series=True, eager_only=True, pass_through=True)
    except DuplicateError:
        raise DataError(
            f"{described} has several columns of one name",
            given=f"the columns {', '.join(map(str, data.columns))}",
            expected="a name of its own for each column",
            remedy="rename the columns",
        ) from None
    if isinstance(table, nw.DataFrame):
        columns = {str(name): table[name].to_numpy() for name in table.columns}
        return {**_index(table, columns), **columns}, described, None
    if isinstance(table, nw.Series):
        name = label or str(table.name or "y")
        return {**_index(table, (name,)), name: table.to_numpy()}, described, name
    try:
        values = np.asarray(data)
    except (ValueError, TypeError, RuntimeError) as error:
        raise _not_a_series(described, str(error)) from error
    if values.ndim != 1:
        raise _not_a_series(described, f"shape {list(values.shape)}" if values.ndim else described)
    return {label or "y": values}, described, label or "y"


def _index(table: nw.DataFrame[Any] | nw.Series[Any], taken: Iterable[str]) -> Columns:
    """The pandas index as a column, where it means something."""
    index = nw.maybe_get_index(table)
    if index is None or index.nlevels > 1:
        return {}
    name = "" if index.name is None else str(index.name)
    column = nw.from_native(index.to_series(), series_only=True)
    if name in taken or (not name and column.dtype != nw.Datetime):
        return {}
    return {name: column.to_numpy()}


def _not_a_series(described: str, given: str) -> DataError:
    return DataError(
        f"{described} of this form is not one series",
        given=given,
        expected="a path, a pandas or polars DataFrame or Series, or a one-dimensional array",
        remedy="pass one column, such as array[:, 0]; call .collect() on a lazy frame",
    )
