"""The forecaster: honest, repeatable, the same after a file, and clear about bad input."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

import recollect
from recollect import Forecaster, cells, datasets
from recollect.errors import DataError, InputError, ModelFileError, NotFittedError, NotYetError
from recollect.estimators import Backtest, WindowScaler
from recollect.model_file import read_model, write_model

QUICK = {"hidden_size": 8, "epochs": 3, "context_length": 12}


def wave(rows=120, level=0.0):
    return level + np.sin(np.arange(rows) * 2 * np.pi / 12)


@pytest.fixture(autouse=True)
def _on_the_reference():
    """Kernels for a dozen cells would take longer to compile than these small networks take to train."""
    with recollect.set_backend("reference"):
        yield


@pytest.fixture(scope="module")
def fitted():
    with recollect.set_backend("reference"):
        return Forecaster(horizon=4, **QUICK).fit(datasets.load("sunspots"))


@recollect.cell(gates="f n", states="h")
def leaky(inp, rec, prev):
    f = torch.sigmoid(inp.f + rec.f)
    return f * prev.h + (1 - f) * torch.tanh(inp.n + rec.n)


class TestEstimator:
    def test_clone_has_the_same_parameters_and_no_fit(self, fitted):
        copy = clone(fitted)
        assert copy.get_params() == fitted.get_params()
        assert not hasattr(copy, "network_")

    def test_clone_keeps_a_cell(self):
        assert clone(Forecaster(cell=leaky)).cell is leaky

    def test_set_params(self):
        assert Forecaster().set_params(horizon=7, cell="gru").get_params()["horizon"] == 7

    def test_fit_returns_itself_and_leaves_its_parameters(self):
        model = Forecaster(horizon=2, **{**QUICK, "context_length": None})
        before = model.get_params()
        assert model.fit(wave()) is model
        assert model.get_params() == before

    def test_same_seed_same_forecast_whatever_the_random_state(self):
        forecasts = []
        for state in (1, 2):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            forecasts.append(Forecaster(horizon=4, **QUICK).fit(wave()).predict())
            assert torch.equal(torch.get_rng_state(), before)
        assert_array_equal(*forecasts)
        other = Forecaster(horizon=4, seed=1, **QUICK).fit(wave()).predict()
        assert not np.array_equal(forecasts[0], other)

    @pytest.mark.parametrize("cell", [*cells.__all__, leaky], ids=str)
    def test_every_cell_trains(self, cell):
        model = Forecaster(horizon=2, cell=cell, **{**QUICK, "epochs": 1}).fit(wave(60))
        assert model.predict().shape == (2,)
        assert np.isfinite(model.predict()).all()

    def test_layers(self):
        model = Forecaster(horizon=2, num_layers=2, **QUICK).fit(wave(60))
        assert model.network_.recurrent.num_layers == 2
        assert model.description == "lstm, 8 units, 2 layers"

    def test_windows_are_what_the_network_forecasts(self, fitted):
        series = datasets.load("sunspots")
        contexts, targets = fitted.windows(series)
        assert contexts.shape == (309 - 16 + 1, 12, 1)
        assert targets.shape == (309 - 16 + 1, 4)
        centre, scale = fitted.scaler_.of(series.values[None, :12])
        with torch.no_grad():
            first = fitted.network_(contexts[:1]).numpy() * scale + centre
        assert_allclose(first[0], fitted.predict(series.values[:12]), rtol=1e-5)
        assert_allclose(targets[0].numpy() * scale[0] + centre[0], series.values[12:16], atol=1e-4)


class TestInput:
    def test_every_form_of_a_series_is_the_same(self):
        values = wave(60)
        expected = Forecaster(horizon=2, **QUICK).fit(values).predict()
        series = datasets.Series("y", values, None, None, "", "")
        for form in (values.tolist(), pd.Series(values), pl.Series(values), series):
            assert_array_equal(Forecaster(horizon=2, **QUICK).fit(form).predict(), expected)

    def test_predict_takes_the_end_of_what_it_is_given(self, fitted):
        series = datasets.load("sunspots")
        assert_array_equal(fitted.predict(), fitted.predict(series))
        assert_array_equal(fitted.predict(series.values[:100]), fitted.predict(series.values[50:100]))

    @pytest.mark.parametrize(
        ("y", "says"),
        [
            (np.zeros((50, 2)), "shape"),
            (np.zeros((50, 1)), "shape"),
            (np.float64(3.0), "one series"),
            ([1.0, np.nan, *range(50)], "missing"),
            ([1.0, np.inf, *range(50)], "infinite"),
            ([1.0, 1e200, *range(50)], "1e150"),
            (["a", "b", *"c" * 50], "not a number"),
            ([], "no rows"),
            (datasets.Series("y", np.full(60, np.nan), None, None, "", ""), "finite"),
        ],
        ids=["2-D", "column", "scalar", "NaN", "infinite", "overflow", "text", "empty", "NaN series"],
    )
    def test_bad_series(self, y, says):
        with pytest.raises(DataError, match=says):
            Forecaster(**QUICK).fit(y)

    @pytest.mark.parametrize("horizon", [1, 3, 10])
    @pytest.mark.parametrize("validation_fraction", [0, 0.05, 0.2, 0.5, 0.9])
    def test_too_few_rows_names_the_number_that_is_enough(self, horizon, validation_fraction):
        model = Forecaster(horizon, 5, hidden_size=2, epochs=1, validation_fraction=validation_fraction)
        with pytest.raises(DataError) as caught:
            model.fit(wave(5))
        enough = int(re.search(r"at least (\d+) rows", str(caught.value))[1])
        with pytest.raises(DataError, match=f"at least {enough} rows"):
            model.fit(wave(enough - 1))
        assert np.isfinite(model.fit(wave(enough)).predict()).all()

    def test_too_few_rows_for_a_backtest(self):
        with pytest.raises(DataError, match="14 rows before the 6 held out"):
            Forecaster(horizon=3, **QUICK).backtest(wave(20), test_size=6)

    def test_too_little_context(self, fitted):
        with pytest.raises(DataError, match="at least 12 rows"):
            fitted.predict(wave(11))

    def test_covariates_are_not_yet(self):
        with pytest.raises(NotYetError, match="covariates"):
            Forecaster().fit(wave(), X=wave())

    @pytest.mark.parametrize("call", ["predict", "save", "windows"])
    def test_not_fitted(self, call, tmp_path):
        arguments = {"predict": (), "save": (tmp_path / "m",), "windows": (wave(),)}
        with pytest.raises(NotFittedError, match="fit"):
            getattr(Forecaster(), call)(*arguments[call])

    @pytest.mark.parametrize(
        "parameters",
        [
            {"horizon": 0},
            {"horizon": 1.5},
            {"horizon": True},
            {"context_length": 1},
            {"hidden_size": None},
            {"learning_rate": 0},
            {"learning_rate": None},
            {"learning_rate": "fast"},
            {"max_norm": -1},
            {"max_norm": np.nan},
            {"patience": 0},
            {"validation_fraction": 1.0},
            {"seed": -1},
            {"cell": 3},
        ],
        ids=str,
    )
    def test_bad_parameters(self, parameters):
        (name,) = parameters
        with pytest.raises(InputError, match=name):
            Forecaster(**parameters).fit(wave())

    def test_unknown_cell_suggests_the_nearest(self):
        with pytest.raises(InputError, match="did you mean 'gru'"):
            Forecaster(cell="gruu").fit(wave())

    @pytest.mark.parametrize("test_size", [0, 3, 120, 4.5, True])
    def test_bad_test_size(self, test_size):
        with pytest.raises(InputError, match="test_size"):
            Forecaster(horizon=4, **QUICK).backtest(wave(), test_size)

    def test_no_validation(self):
        model = Forecaster(horizon=2, validation_fraction=0, **QUICK).fit(wave(14))
        assert model.history_.validation_loss == []


class TestScaling:
    def test_constant_series(self):
        model = Forecaster(horizon=3, **QUICK)
        result = model.backtest(np.full(60, 7.25))
        assert np.isnan(result.errors["naive"].mase)
        assert result.errors["naive"].mae == 0
        assert "does not beat" in str(result) or "only equals" in str(result)
        # Whatever the network adds stays within the floor of the scale.
        assert np.abs(model.fit(np.full(60, 7.25)).predict() - 7.25).max() < 0.2

    def test_forecasts_move_with_the_data(self):
        """A shifted and stretched series has the shifted and stretched forecast: no unit is special."""
        model = Forecaster(horizon=4, **QUICK)
        plain = model.fit(wave()).predict()
        moved = model.fit(1000 + 50 * wave()).predict()
        assert_allclose((moved - 1000) / 50, plain, atol=1e-3)

    def test_scale_of_a_window_is_that_of_its_context(self):
        contexts = np.random.default_rng(0).normal(5, 3, size=(4, 50))
        scaler = WindowScaler(spread=0.0)
        centre, scale = scaler.of(contexts)
        scaled = (contexts - centre) / scale
        assert_allclose(scaled.mean(1), 0, atol=1e-12)
        assert_allclose(scaled.std(1), 1, rtol=1e-12)

    def test_held_out_values_reach_neither_scaler_nor_forecast(self):
        model = Forecaster(horizon=4, **QUICK)
        series = datasets.load("sunspots")
        changed = series.values.copy()
        changed[-50:] = 1e6
        first = model.backtest(series, test_size=50)
        other = model.backtest(dataclasses.replace(series, values=changed), test_size=50)
        # The first origin sees only what is in both; at the twelfth, a changed value is a season old.
        for name, forecast in first.forecasts.items():
            assert_array_equal(forecast[0], other.forecasts[name][0])
            assert not np.array_equal(forecast[11], other.forecasts[name][11])
        assert_array_equal(first.history, other.history)

    def test_validation_rows_do_not_reach_the_scaler(self):
        values = wave(100)
        changed = values.copy()
        changed[80:] *= 100
        model = Forecaster(horizon=4, **QUICK)
        assert model.fit(values).scaler_ == model.fit(changed).scaler_


class TestBacktest:
    def test_forecasts_are_those_of_a_model_fitted_on_what_came_before(self):
        series = datasets.load("sunspots")
        result = Forecaster(horizon=4, **QUICK).backtest(series, test_size=40)
        model = Forecaster(horizon=4, **QUICK).fit(series.values[:-40])
        assert result.actual.shape == (37, 4)
        for origin in (0, 20, 36):
            past = series.values[: 269 + origin]
            assert_allclose(result.forecasts["model"][origin], model.predict(past), rtol=1e-4)
            assert_array_equal(result.actual[origin], series.values[269 + origin : 273 + origin])
            assert_array_equal(result.forecasts["naive"][origin], past[-1])
            assert_array_equal(result.forecasts["seasonal naive"][origin], past[-11:-7])

    def test_estimator_is_left_as_it_was(self, fitted):
        before = fitted.predict()
        fitted.backtest(wave())
        assert_array_equal(fitted.predict(), before)

    def test_no_season_no_seasonal_naive(self):
        result = Forecaster(horizon=2, **QUICK).backtest(wave())
        assert list(result.forecasts) == ["model", "naive", "drift"]

    def test_default_holds_out_a_fifth(self):
        result = Forecaster(horizon=2, **QUICK).backtest(wave(100))
        assert len(result.history) == 80

    def test_beats_the_baselines_on_sunspots(self):
        model = Forecaster(horizon=11, hidden_size=16, learning_rate=1e-2, epochs=25)
        with recollect.set_backend("auto"):
            errors = model.backtest(datasets.load("sunspots")).errors
        assert errors["model"].mae < 0.9 * errors["seasonal naive"].mae
        assert errors["model"].mae < 0.5 * errors["naive"].mae
        assert errors["model"].mae < 0.5 * errors["drift"].mae

    @pytest.mark.parametrize(
        ("error", "verdict"),
        [
            (0.5, "lowest MAE, 50% below naive"),
            (1.0, "only equals naive"),
            (1.5, "does not beat naive: its MAE is 50%"),
        ],
    )
    def test_verdict_is_by_the_numbers(self, error, verdict):
        values = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
        actual = np.lib.stride_tricks.sliding_window_view(values[4:], 1)
        result = Backtest.run(Forecaster(), values, 4, None, actual + error)
        assert verdict in str(result)
        assert (result.best == "model") == (error < 1)

    def test_baseline_that_is_exact(self):
        result = Backtest.run(Forecaster(), np.arange(10.0), 6, None, np.full((4, 1), 0.0))
        assert result.best == "drift"
        assert result.errors["drift"].mae == 0
        assert "does not beat drift" in str(result)

    def test_table_shows_every_method_and_its_numbers(self):
        result = Forecaster(horizon=4, **QUICK).backtest(datasets.load("sunspots"))
        text = str(result)
        for name, errors in result.errors.items():
            line = next(line for line in text.splitlines() if (name if name != "model" else "lstm, 8") in line)
            for number in errors:
                assert f"{number:.4g}" in line


class TestFile:
    @pytest.mark.parametrize("cell", ["gru", leaky, cells.mgu], ids=str)
    @pytest.mark.parametrize("name", datasets.names())
    def test_save_and_load_is_identity(self, tmp_path, cell, name):
        series = datasets.load(name)
        model = Forecaster(horizon=4, cell=cell, **{**QUICK, "epochs": 1}).fit(series)
        model.save(tmp_path / "m")
        loaded = Forecaster.load(tmp_path / "m")
        assert_array_equal(loaded.predict(), model.predict())
        assert_array_equal(loaded.predict(series.values[:40]), model.predict(series.values[:40]))
        assert loaded.network_.recurrent.cell.graph == model.network_.recurrent.cell.graph
        assert {**loaded.get_params(), "cell": 0} == {**model.get_params(), "cell": 0}
        assert loaded.time_ is not None
        assert_array_equal(loaded.time_, series.time[-25:])
        for attribute in ("name_", "season_length_", "context_length_", "n_rows_", "scaler_", "description"):
            assert getattr(loaded, attribute) == getattr(model, attribute)
        loaded.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()

    def test_loaded_model_can_be_fitted_again(self, tmp_path, fitted):
        fitted.save(tmp_path / "m")
        again = Forecaster.load(tmp_path / "m").fit(datasets.load("sunspots"))
        assert_array_equal(again.predict(), fitted.predict())

    def test_numpy_parameters_can_be_saved(self, tmp_path):
        model = Forecaster(horizon=np.int64(2), learning_rate=np.float32(0.01), **QUICK).fit(wave(60))
        model.save(tmp_path / "m")
        assert_array_equal(Forecaster.load(tmp_path / "m").predict(), model.predict())

    def test_a_layers_file_is_not_a_forecaster(self, tmp_path):
        recollect.save(torch.nn.Linear(2, 3), tmp_path / "m")
        with pytest.raises(ModelFileError, match=r"recollect\.load"):
            Forecaster.load(tmp_path / "m")

    @pytest.mark.parametrize(
        "lie",
        [
            {"parameters": None},
            {"parameters": {}},
            {"parameters": {"horizon": 5}},
            {"parameters": {"horizon": -4}},
            {"parameters": {"horizon": 4, "command": "ls"}},
            {"spread": 0.0},
            {"spread": "1"},
            {"spread": -1.0},
            {"rows": None},
            {"rows": 2},
            {"name": 3},
            {"season_length": "a"},
            {"time_dtype": "O"},
            {"time_dtype": None},
            {"module": None},
        ],
        ids=str,
    )
    def test_lying_header(self, tmp_path, fitted, lie):
        fitted.save(tmp_path / "m")
        header, tensors = read_model(tmp_path / "m")
        write_model(tmp_path / "m", {**header, **lie}, tensors)
        with pytest.raises(ModelFileError):
            Forecaster.load(tmp_path / "m")

    @pytest.mark.parametrize("name", ["context", "time", "head.weight", "recurrent.weight_hh_l0"])
    @pytest.mark.parametrize("array", [None, np.array(1.0), np.zeros(3, np.float32), np.full(12, np.nan)], ids=str)
    def test_lying_tensors(self, tmp_path, fitted, name, array):
        fitted.save(tmp_path / "m")
        header, tensors = read_model(tmp_path / "m")
        del tensors[name]
        if array is not None:
            tensors[name] = array
        elif name == "time":
            return  # a series need not have times
        write_model(tmp_path / "m", header, tensors)
        with pytest.raises(ModelFileError):
            Forecaster.load(tmp_path / "m")
