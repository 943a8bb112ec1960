"""Data: embedded real series, tables read from files and frames, and synthetic tasks. Needs no torch."""

from recollect.datasets.digits import digits_rows
from recollect.datasets.embedded import load, names, write
from recollect.datasets.series import Series
from recollect.datasets.table import read_series
from recollect.datasets.tasks import adding, sine_to_cosine
from recollect.datasets.time_axis import infer_season_length

__all__ = [
    "Series",
    "adding",
    "digits_rows",
    "infer_season_length",
    "load",
    "names",
    "read_series",
    "sine_to_cosine",
    "write",
]
