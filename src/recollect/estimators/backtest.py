"""Held-out errors of a forecaster beside the forecasts that need no training."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from recollect.estimators import baselines
from recollect.estimators.metrics import mase_scale, mean_absolute_error, root_mean_squared_error

if TYPE_CHECKING:
    from recollect.estimators.forecaster import Forecaster

MODEL = "model"


class Errors(NamedTuple):
    """Mean errors over all origins and steps ahead: MAE and RMSE in data units, MASE without unit."""

    mae: float
    rmse: float
    mase: float


@dataclass(frozen=True, eq=False)
class Backtest:
    """Forecasts from rolling origins over the held-out end of a series.

    The model was fitted once, on the rows before the held-out part. Then the origin moves through the
    held-out part one row at a time, and each forecast sees all rows before its origin and none after.
    The last origin is the last one whose whole horizon is known.

    Attributes:
        model: what the model is, for the reader, such as ``"lstm, 64 units"``.
        history: the values that the model was fitted on [n].
        season_length: steps in a season; None leaves seasonal naive out.
        actual: what came, [origins, horizon], in data units.
        forecasts: what each method said, [origins, horizon]; keys ``"model"``, ``"naive"``,
            ``"seasonal naive"`` and ``"drift"``.
        fitted: the forecaster that was fitted on ``history``.
    """

    model: str
    history: np.ndarray = field(repr=False)
    season_length: int | None
    actual: np.ndarray = field(repr=False)
    forecasts: dict[str, np.ndarray] = field(repr=False)
    fitted: Forecaster = field(repr=False)

    @classmethod
    def run(
        cls,
        fitted: Forecaster,
        values: np.ndarray,
        first: int,
        season_length: int | None,
        forecast: np.ndarray,
    ) -> Backtest:
        """Set the model's forecasts beside the baselines'.

        Args:
            fitted: the forecaster.
            values: the whole series [n].
            first: rows that the model was fitted on; the first origin comes after them.
            season_length: steps in a season, below ``first``; None leaves seasonal naive out.
            forecast: the model's forecasts [origins, horizon], from ``first`` on.
        """
        origins, horizon = forecast.shape
        pasts = [values[:origin] for origin in range(first, first + origins)]
        forecasts = {MODEL: forecast, "naive": np.stack([baselines.naive(past, horizon) for past in pasts])}
        if season_length is not None:
            forecasts["seasonal naive"] = np.stack(
                [baselines.seasonal_naive(past, horizon, season_length) for past in pasts]
            )
        forecasts["drift"] = np.stack([baselines.drift(past, horizon) for past in pasts])
        actual = np.lib.stride_tricks.sliding_window_view(values[first:], horizon)[:origins]
        return cls(fitted.description, values[:first], season_length, actual, forecasts, fitted)

    @cached_property
    def errors(self) -> dict[str, Errors]:
        """The errors of each method. MASE is NaN where the history repeats itself exactly."""
        scale = mase_scale(self.history, self.season_length) or np.nan
        found = {}
        for name, forecast in self.forecasts.items():
            mae = mean_absolute_error(self.actual, forecast)
            found[name] = Errors(mae, root_mean_squared_error(self.actual, forecast), mae / scale)
        return found

    @property
    def best(self) -> str:
        """The method with the lowest MAE; the simpler one of two that are equal."""
        return min(reversed(list(self.errors)), key=lambda name: self.errors[name].mae)

    @property
    def verdict(self) -> str:
        """One sentence: how the model stands against the best baseline."""
        baseline = min((name for name in self.errors if name != MODEL), key=lambda name: self.errors[name].mae)
        ours, theirs = self.errors[MODEL].mae, self.errors[baseline].mae
        if self.best == MODEL:
            return f"The model has the lowest MAE, {1 - ours / theirs:.0%} below {baseline}, the best baseline."
        if ours == theirs:
            return f"The model only equals {baseline}, which needs no training."
        more = f"{ours / theirs - 1:.0%} above it" if theirs else f"{ours:.4g} above it"
        return f"The model does not beat {baseline}: its MAE is {more}."

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        origins, horizon = self.actual.shape
        table = Table()
        table.add_column("method")
        for heading in Errors._fields:
            table.add_column(heading.upper(), justify="right")
        for name, errors in self.errors.items():
            label = self.model if name == MODEL else name
            numbers = ["-" if np.isnan(error) else f"{error:.4g}" for error in errors]
            table.add_row(label, *numbers, style="bold" if name == self.best else "")
        yield f"Errors on {origins + horizon - 1} held-out rows"
        yield table
        yield self.verdict
        yield (
            f"Fitted on the {len(self.history)} rows before; {origins} forecasts of {horizon} "
            f"{'row' if horizon == 1 else 'rows'}, each from all rows before it."
        )

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=100, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip("\n")
