"""A series: the values of one quantity, one after the other in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Series:
    """The values of one quantity in the order of time, at equal steps.

    Attributes:
        name: what the values are called, e.g. the column they were read from.
        values: float64 [n], finite, in data units.
        time: ``datetime64[us]`` [n] (UTC where the source named a time zone) or int64 [n], strictly
            increasing; None where the source has no time.
        season_length: steps in one season, for seasonal naive forecasts; None where it is not known.
        description: one line for a person.
        source: where the values come from.
    """

    name: str
    values: np.ndarray
    time: np.ndarray | None
    season_length: int | None
    description: str
    source: str

    def __len__(self) -> int:
        return len(self.values)
