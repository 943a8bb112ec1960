"""A fitted forecaster as a model file, and back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from recollect import cells
from recollect.cells import Cell
from recollect.errors import ModelFileError
from recollect.estimators.network import ForecastNetwork
from recollect.estimators.scaling import WindowScaler
from recollect.model_file import pack_module, read_model, require_kind, unpack_module, write_model
from recollect.nn import Recurrent

if TYPE_CHECKING:
    from recollect.estimators.forecaster import Forecaster


def write(model: Forecaster, path: str | os.PathLike[str]) -> None:
    """Write a fitted forecaster: its parameters, layers, scaler, last context and last times.

    Raises:
        OSError: ``path`` cannot be written.
    """
    layers, tensors = pack_module(model.network_.layers())
    # A cell of the user's own travels in the recurrent layer; here stands any name that is known.
    cell = model.network_.recurrent.cell
    parameters = {**model.get_params(), "cell": cell.name if _is_ours(cell) else "lstm"}
    header = {
        "kind": "forecaster",
        **layers,
        "parameters": {key: _plain(value) for key, value in parameters.items()},
        "name": model.name_,
        "rows": model.n_rows_,
        "season_length": _plain(model.season_length_),
        "spread": model.scaler_.spread,
        "time_dtype": None if model.time_ is None else model.time_.dtype.str,
    }
    tensors["context"] = model.context_
    if model.time_ is not None:
        tensors["time"] = model.time_.astype(np.int64)
    write_model(path, header, tensors)


def read(kind: type[Forecaster], path: str | os.PathLike[str]) -> Forecaster:
    """Read what `write` wrote into a new ``kind``, once all of it is checked.

    Raises:
        ModelFileError: the file is truncated, altered, foreign, of a newer format, or of another kind.
        OSError: there is no such file, or it cannot be read.
    """
    header, tensors = read_model(path)
    require_kind(header, "forecaster", path)
    try:
        return _restore(kind, header, tensors)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            "the file does not describe a forecaster", given=f"{type(error).__name__}: {error}"
        ) from error


def _restore(kind: type[Forecaster], header: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> Forecaster:
    context, time = tensors.pop("context"), tensors.pop("time", None)
    spread, rows, season_length = header["spread"], header["rows"], header["season_length"]
    _require("the context", context.dtype == np.float64 and context.ndim == 1 and len(context) > 1)
    _require("the context", bool((np.abs(context) < math.inf).all()))
    _require("the scale", type(spread) is float and 0 < spread < math.inf)
    _require("the name", type(header["name"]) is str)
    _require("the number of rows", type(rows) is int and rows >= len(context))
    _require("the season length", season_length is None or (type(season_length) is int and season_length > 0))
    if time is not None:
        _require("the time axis", time.dtype == np.int64 and time.ndim == 1)
        _require("the time axis", header["time_dtype"] in ("<i8", "<M8[us]"))

    model = kind(**header["parameters"])
    model.check_parameters()
    layers = unpack_module(header, tensors)
    _require("the network", type(layers) is nn.Sequential and len(layers) == 2)
    recurrent, head = layers.children()
    if not isinstance(recurrent, Recurrent) or not isinstance(head, nn.Linear):
        raise ValueError("the network is not a recurrent layer and a linear head")
    reads = (recurrent.input_size, recurrent.batch_first, recurrent.bidirectional)
    _require("the recurrent layer", reads == (1, True, False))
    _require("the head", (head.in_features, head.out_features) == (recurrent.hidden_size, model.horizon))

    if not _is_ours(recurrent.cell):
        model.cell = recurrent.cell
    model.network_ = ForecastNetwork(recurrent, head).eval()
    model.scaler_ = WindowScaler(spread)
    model.context_, model.context_length_ = context, len(context)
    model.time_ = None if time is None else time.astype(header["time_dtype"])
    model.season_length_ = season_length
    model.name_, model.n_rows_ = header["name"], rows
    return model


def _is_ours(cell: Cell) -> bool:
    return cell.name in cells.__all__ and cell is cells.by_name(cell.name)


def _require(what: str, fits: bool) -> None:
    if not fits:
        raise ValueError(f"{what} is not what a forecaster has")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
