"""Estimators in the manner of scikit-learn, and the forecasts that they have to beat."""

from recollect.estimators.backtest import Backtest, Errors
from recollect.estimators.forecaster import Forecaster
from recollect.estimators.future_times import future_times
from recollect.estimators.network import ForecastNetwork
from recollect.estimators.scaling import WindowScaler

__all__ = ["Backtest", "Errors", "ForecastNetwork", "Forecaster", "WindowScaler", "future_times"]
