"""A forecaster for one series, as a scikit-learn estimator."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import UNUSED
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from recollect import cells
from recollect.cells import Cell
from recollect.errors import DataError, InputError, NotFittedError, NotYetError
from recollect.estimators import forecaster_file
from recollect.estimators.backtest import Backtest
from recollect.estimators.network import ForecastNetwork
from recollect.estimators.parameters import check_fraction, check_number, check_positive, check_whole, is_whole
from recollect.estimators.scaling import WindowScaler, series_to_scale
from recollect.estimators.split import check_rows, choose_context_length, validation_rows
from recollect.nn import Recurrent
from recollect.nn.init import forget_bias_
from recollect.training import Observer, ProgressBar, sliding_windows, train

# How many of the last times a fitted model keeps, to tell how they go on.
_TIMES_KEPT = 25
_VALIDATION_BATCH = 512
_AT_LEAST = {
    "horizon": 1,
    "context_length": 2,
    "hidden_size": 1,
    "num_layers": 1,
    "epochs": 1,
    "batch_size": 1,
    "patience": 1,
    "season_length": 1,
    "seed": 0,
}
_MAY_BE_NONE = ("context_length", "patience", "season_length")


class Forecaster(BaseEstimator):
    """Forecasts the next ``horizon`` values of one series from its last ``context_length`` ones.

    A recurrent layer reads the context, a linear head says all steps ahead at once. Each window is scaled
    by its own context (see `WindowScaler`); training lowers the absolute error, so a forecast is closer to
    the median of what may come than to its mean. The last rows of the training data are the validation
    part: training keeps the weights of the epoch with the lowest error there, and stops early.

    Args:
        horizon: steps ahead, in rows.
        context_length: rows that a forecast looks back on, at least 2. None takes three seasons, or 24
            where no season is known, at least two horizons, and less where the series is short.
        cell: the name of a cell in `recollect.cells`, or a `Cell`.
        hidden_size: units in each recurrent layer.
        num_layers: recurrent layers, one on top of the other.
        epochs: passes over the training windows, at most.
        batch_size: windows in one step of the optimiser.
        learning_rate: of Adam.
        max_norm: limit on the global norm of the gradient; None does not clip.
        patience: epochs without a better validation error after which training stops; None never stops.
        season_length: rows in one season, for the context and the seasonal naive baseline; None takes
            that of the series, where it is known.
        validation_fraction: share of the rows, the last ones, kept for validation; at least one horizon
            of rows. 0 trains on all rows, for all epochs.
        forget_bias: start of the bias of a gate ``f``; 1 keeps the state for longer at first. None leaves
            PyTorch's start, around 0.
        seed: of the weights and the order of batches; the same seed gives the same forecast.
        verbose: show a progress bar on standard error.

    Attributes:
        network_: the trained `ForecastNetwork`; ``recollect.diagnose`` takes it.
        scaler_: the `WindowScaler`, fitted on the training part only.
        history_: the `recollect.training.History` of the fit; not kept in a file.
        context_length_: the context length in use.
        season_length_: the season length in use, or None.
        context_: the last ``context_length_`` values [context_length_], in data units.
        time_: the last times of the series (25 at most), or None.
        name_: what the series is called.
        n_rows_: rows of the series it was fitted on.

    Example:
        >>> model = recollect.Forecaster(horizon=11, season_length=11).fit(sunspots)
        >>> model.predict()          # the 11 values after the last, in data units
        >>> print(recollect.Forecaster(horizon=11).backtest(sunspots))
    """

    __metadata_request__fit: ClassVar = {"watch": UNUSED}  # no data that a pipeline could route

    def __init__(
        self,
        horizon: int = 1,
        context_length: int | None = None,
        cell: str | Cell = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        epochs: int = 100,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        max_norm: float | None = 1.0,
        patience: int | None = 20,
        season_length: int | None = None,
        validation_fraction: float = 0.2,
        forget_bias: float | None = None,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        self.horizon = horizon
        self.context_length = context_length
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_norm = max_norm
        self.patience = patience
        self.season_length = season_length
        self.validation_fraction = validation_fraction
        self.forget_bias = forget_bias
        self.seed = seed
        self.verbose = verbose

    def fit(self, y: Any, X: Any = None, *, watch: Callable[[nn.Module], Observer] | None = None) -> Forecaster:
        """Train on a series.

        Args:
            y: the series [n] in order of time: an array, a pandas or polars Series, a
                `recollect.datasets.Series`, or anything else that `recollect.datasets.read_series` takes
                as one series.
            X: covariates, not built yet; None.
            watch: makes an observer of the training from the network, such as `recollect.diagnosis.Probe`.

        Returns:
            The estimator itself.

        Raises:
            DataError: the series is not one of finite numbers, or has too few rows.
            InputError: a parameter of the estimator cannot be used.
            NotYetError: ``X`` is given.
        """
        if X is not None:
            raise NotYetError(
                "Forecaster takes no covariates yet",
                given="X",
                remedy="leave X out and forecast y from itself",
            )
        self.check_parameters()
        series = series_to_scale(y)
        self.season_length_ = self.season_length or series.season_length
        held_back = validation_rows(len(series), self.horizon, self.validation_fraction)
        training = slice(0, len(series) - held_back)
        self.context_length_ = self.context_length or choose_context_length(
            training.stop, self.horizon, self.season_length_
        )
        check_rows(len(series), self.context_length_, self.horizon, self.validation_fraction)
        contexts, targets = self._windows(series.values, training)
        self.scaler_ = WindowScaler.fit(contexts)
        batches = DataLoader(
            TensorDataset(*self._scaled(contexts, targets)),
            self.batch_size,
            shuffle=True,
            # Its own generator, so that the caller's random state neither matters nor moves.
            generator=torch.Generator().manual_seed(self.seed),
        )
        validation = None
        if held_back:
            x, y = self._scaled(*self._windows(series.values, slice(training.stop, len(series))))
            validation = list(zip(x.split(_VALIDATION_BATCH), y.split(_VALIDATION_BATCH), strict=True))
        network = self.initial_network()
        self.history_ = train(
            network,
            batches,
            loss=nn.functional.l1_loss,
            optimizer=torch.optim.Adam(network.parameters(), lr=self.learning_rate),
            epochs=self.epochs,
            max_norm=self.max_norm,
            validation=validation,
            patience=self.patience if held_back else None,
            observers=[*([ProgressBar()] if self.verbose else []), *([watch(network)] if watch else [])],
            seed=self.seed,
        )
        self.network_ = network.eval()
        self.context_ = series.values[-self.context_length_ :].copy()
        self.time_ = None if series.time is None else series.time[-_TIMES_KEPT:].copy()
        self.name_, self.n_rows_ = series.name, len(series)
        return self

    def predict(self, y: Any = None) -> np.ndarray:
        """Forecast [horizon], in data units.

        Args:
            y: the series up to now, at least ``context_length_`` rows; None goes on where the training
                data ended.

        Raises:
            DataError: the series is not one of finite numbers, or has too few rows.
            NotFittedError: ``fit`` was not called.
        """
        self._check_fitted()
        context = self.context_
        if y is not None:
            values = series_to_scale(y).values
            if len(values) < self.context_length_:
                raise DataError(
                    "the series is shorter than the context that the model looks back on",
                    given=f"{len(values)} rows",
                    expected=f"at least {self.context_length_} rows",
                    remedy="give more of the past, or fit with a shorter context_length",
                )
            context = values[-self.context_length_ :]
        return self._forecast(context[None])[0]

    def windows(self, y: Any) -> tuple[Tensor, Tensor]:
        """Cut a series into what ``network_`` takes and should return, scaled: for a look inside.

        Args:
            y: the series, at least ``context_length_ + horizon`` rows.

        Returns:
            Contexts [n, context_length_, 1] and targets [n, horizon], float32, without unit.

        Raises:
            DataError: the series is not one of finite numbers, or has too few rows.
            NotFittedError: ``fit`` was not called.
        """
        self._check_fitted()
        values = series_to_scale(y).values
        return self._scaled(*sliding_windows(values, self.context_length_, self.horizon))

    def backtest(self, y: Any, test_size: int | None = None) -> Backtest:
        """Measure held-out errors beside naive, seasonal naive and drift forecasts.

        A copy of this estimator is fitted on the rows before the last ``test_size``. Its forecasts start
        at each held-out row whose whole horizon is known, and see all rows before it. The estimator
        itself is left as it is.

        Args:
            y: the series, as for `fit`.
            test_size: rows to hold out, at least ``horizon``; None holds out a fifth of the rows.

        Raises:
            DataError: as for `fit`; the rows before the held-out part are too few.
            InputError: ``test_size`` or a parameter of the estimator cannot be used.
        """
        self.check_parameters()
        series = series_to_scale(y)
        if test_size is None:
            test_size = max(self.horizon, len(series) // 5)
            if test_size >= len(series):
                raise DataError(
                    f"series {series.name!r} has too few rows to hold some out",
                    given=f"{len(series)} rows",
                    expected=f"more than the horizon of {self.horizon} rows",
                )
        if not is_whole(test_size) or not self.horizon <= test_size < len(series):
            raise InputError(
                "test_size does not fit the series",
                given=f"test_size={test_size!r}, {len(series)} rows",
                expected=f"a whole number of rows from {self.horizon} (the horizon) to {len(series) - 1}",
            )
        first = len(series) - test_size
        time = None if series.time is None else series.time[:first]
        model = type(self)(**self.get_params(deep=False))
        try:
            model.fit(replace(series, values=series.values[:first], time=time))
        except DataError as error:
            given = f"{first} rows before the {test_size} held out"
            raise DataError(error.what, given=given, expected=error.expected, remedy=error.remedy) from None
        start = first - model.context_length_
        contexts, _ = sliding_windows(series.values[start:], model.context_length_, self.horizon)
        season_length = model.season_length_
        if season_length is not None and season_length >= first:
            season_length = None
        return Backtest.run(model, series.values, first, season_length, model._forecast(contexts))

    @property
    def description(self) -> str:
        """The network in a few words, such as ``"lstm, 64 units"``."""
        layers = "" if self.num_layers == 1 else f", {self.num_layers} layers"
        return f"{self._find_cell().name}, {self.hidden_size} units{layers}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to a file, with the last context, so that it can forecast from there.

        Raises:
            NotFittedError: ``fit`` was not called.
            OSError: ``path`` cannot be written.
        """
        self._check_fitted()
        forecaster_file.write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Forecaster:
        """Read a model that `save` wrote; its forecasts are the same.

        Raises:
            ModelFileError: the file is truncated, altered, foreign, of a newer format, or of another kind.
            OSError: there is no such file, or it cannot be read.
        """
        return forecaster_file.read(cls, path)

    def _forecast(self, contexts: np.ndarray) -> np.ndarray:
        """Forecasts [n, horizon] from ``contexts`` [n, context_length_], both in data units."""
        centre, scale = self.scaler_.of(contexts)
        with torch.inference_mode():
            scaled = self.network_(_inputs((contexts - centre) / scale))
        return scaled.numpy().astype(np.float64) * scale + centre

    def _windows(self, values: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        return sliding_windows(values, self.context_length_, self.horizon, target_rows=rows)

    def _scaled(self, contexts: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        centre, scale = self.scaler_.of(contexts)
        scaled_targets = torch.tensor((targets - centre) / scale, dtype=torch.float32)
        return _inputs((contexts - centre) / scale), scaled_targets

    def initial_network(self) -> ForecastNetwork:
        """The network as training starts with it: drawn from ``seed``, untrained.

        Raises:
            InputError: a parameter of the estimator cannot be used.
        """
        self.check_parameters()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            try:
                recurrent = Recurrent(
                    self._find_cell(), 1, self.hidden_size, num_layers=self.num_layers, batch_first=True
                )
                if self.forget_bias is not None:
                    forget_bias_(recurrent, self.forget_bias)
                return ForecastNetwork(recurrent, nn.Linear(self.hidden_size, self.horizon))
            except (RuntimeError, TypeError) as error:  # what PyTorch raises where memory or 64 bits end
                raise InputError(
                    "the network is too large for this machine",
                    given=f"hidden_size={self.hidden_size}, num_layers={self.num_layers}",
                    remedy="use fewer units",
                ) from error

    def check_parameters(self) -> None:
        """Check what ``__init__`` only stored; `fit` does so first.

        Raises:
            InputError: a parameter has the wrong type or is out of range.
        """
        for name, at_least in _AT_LEAST.items():
            if getattr(self, name) is not None or name not in _MAY_BE_NONE:
                check_whole(name, getattr(self, name), at_least)
        check_positive("learning_rate", self.learning_rate)
        if self.max_norm is not None:
            check_positive("max_norm", self.max_norm)
        check_fraction("validation_fraction", self.validation_fraction)
        cell = self._find_cell()
        if self.forget_bias is not None:
            check_number("forget_bias", self.forget_bias)
            if "f" not in cell.gates:
                raise InputError(
                    f"cell {cell.name!r} has no forget gate",
                    given=f"forget_bias={self.forget_bias}",
                    expected="a cell with a gate called f, or forget_bias=None",
                )

    def _find_cell(self) -> Cell:
        if isinstance(self.cell, str):
            return cells.by_name(self.cell)
        if isinstance(self.cell, Cell):
            return self.cell
        raise InputError(
            "cell is neither a name nor a Cell",
            given=type(self.cell).__name__,
            expected=f"one of {', '.join(cells.__all__)}, or what recollect.cell returns",
        )

    def _check_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise NotFittedError(
                "this Forecaster is not fitted yet", remedy="call fit(y) first, or Forecaster.load(path)"
            )


def _inputs(scaled: np.ndarray) -> Tensor:
    return torch.tensor(scaled, dtype=torch.float32).unsqueeze(-1)
