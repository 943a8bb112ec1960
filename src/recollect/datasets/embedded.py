"""The data that come with the package, each a small CSV file with a note beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from recollect._files import write_atomically
from recollect.datasets.csv_file import read_columns
from recollect.datasets.series import Series
from recollect.datasets.time_axis import parse_time
from recollect.datasets.values import parse_values, suggest
from recollect.errors import DataError


@dataclass(frozen=True)
class _Facts:
    """What the CSV file itself cannot say; the note beside it says more."""

    season_length: int
    description: str
    source: str


_FACTS = {
    "co2_monthly": _Facts(
        season_length=12,
        description="Monthly mean CO2 at Mauna Loa in ppmv, 1958-03 to 2001-12; 5 months interpolated",
        source="C. D. Keeling and T. P. Whorf (2004), CDIAC, through statsmodels' co2; public domain",
    ),
    "sunspots": _Facts(
        season_length=11,
        description="Yearly mean sunspot numbers, 1700 to 2008; the solar cycle lasts about 11 years",
        source="National Geophysical Data Center, through statsmodels' sunspots; public domain",
    ),
}


def names() -> tuple[str, ...]:
    """The names of the embedded series, in alphabetical order."""
    return tuple(_FACTS)


def load(name: str) -> Series:
    """Load an embedded series.

    ``"sunspots"``: 309 yearly values; ``time`` are the years as integers; ``season_length`` 11, the
    solar cycle, which is a cycle of about that length and not a fixed season. ``"co2_monthly"``: 526
    monthly values in ppmv; ``time`` are first days of months; ``season_length`` 12. The series is named
    after its column in the file: ``sunspots`` and ``co2``.

    Raises:
        DataError: no embedded series has that name.
    """
    (time_name, time), (value_name, values) = columns(name).items()
    facts = _FACTS[name]
    return Series(
        name=value_name,
        values=parse_values(values, value_name),
        time=parse_time(time, time_name),
        season_length=facts.season_length,
        description=facts.description,
        source=facts.source,
    )


def write(name: str, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write an embedded series as a CSV file with a header row.

    Args:
        name: one of `names`.
        path: the file to write, or a folder, which then gets ``<name>.csv``.
        overwrite: replace a file that is there.

    Returns:
        The path of the file, which is whole or not there.

    Raises:
        DataError: no embedded series has that name, the file exists, or it cannot be written.
    """
    data = _read(name)
    target = Path(path)
    if target.is_dir():
        target = target / f"{name}.csv"
    if target.exists() and not overwrite:
        raise DataError(
            f"{target} exists",
            expected="a path where no file is",
            remedy="choose another path, or pass overwrite=True",
        )
    try:
        write_atomically(target, data)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written",
            given=error.strerror,
            expected="a folder that exists and can be written",
            remedy="create the folder, or choose another path",
        ) from error
    return target


def columns(name: str) -> dict[str, np.ndarray]:
    """The columns of an embedded file as text: its time, then its values.

    Raises:
        DataError: no embedded series has that name.
    """
    return read_columns(_read(name), name)


def _read(name: str) -> bytes:
    if name not in _FACTS:
        raise DataError(
            "there is no embedded series of that name",
            given=repr(name),
            expected=f"one of {', '.join(names())}",
            remedy=suggest(name, names()),
        )
    return resources.files("recollect.datasets").joinpath("data", f"{name}.csv").read_bytes()
