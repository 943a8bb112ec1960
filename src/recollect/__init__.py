"""Recurrent networks for PyTorch: write one time step, get a fast network whose gradient you can see.

Public names are loaded when they are first used, so that ``import recollect`` costs nothing and never
imports torch by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it. A name that is itself a module maps to itself.
_HOME = {
    "cell": "recollect.cells.cell",
    "cells": "recollect.cells",
    "clip_by_global_norm": "recollect.training",
    "clip_by_value": "recollect.training",
    "convert": "recollect.nn",
    "datasets": "recollect.datasets",
    "detach_state": "recollect.training",
    "diagnose": "recollect.diagnosis",
    "diagnosis": "recollect.diagnosis",
    "errors": "recollect.errors",
    "Forecaster": "recollect.estimators",
    "load": "recollect.model_file",
    "nn": "recollect.nn",
    "release_buffers": "recollect.engine.buffers",
    "save": "recollect.model_file",
    "set_backend": "recollect.engine.dispatch",
    "set_precision": "recollect.engine.precision",
    "stream": "recollect.stream",
    "tbptt": "recollect.training",
    "training": "recollect.training",
}

__all__ = [
    "Forecaster",
    "__version__",
    "cell",
    "cells",
    "clip_by_global_norm",
    "clip_by_value",
    "convert",
    "datasets",
    "detach_state",
    "diagnose",
    "diagnosis",
    "errors",
    "load",
    "nn",
    "release_buffers",
    "save",
    "set_backend",
    "set_precision",
    "stream",
    "tbptt",
    "training",
]

if TYPE_CHECKING:
    from recollect import cells, datasets, diagnosis, errors, nn, stream, training
    from recollect.cells.cell import cell
    from recollect.diagnosis import diagnose
    from recollect.engine.buffers import release_buffers
    from recollect.engine.dispatch import set_backend
    from recollect.engine.precision import set_precision
    from recollect.estimators import Forecaster
    from recollect.model_file import load, save
    from recollect.nn import convert
    from recollect.training import clip_by_global_norm, clip_by_value, detach_state, tbptt


# Promised, and not there yet: name -> what to use until then.
_LATER = {
    "SequenceClassifier": "recollect.nn.LSTM and a torch.nn.Linear, as in examples/digits_by_rows.py",
    "SequenceRegressor": "recollect.nn.LSTM and a torch.nn.Linear, as in examples/custom_cell.py",
    "SequenceTagger": "recollect.nn.LSTM and a torch.nn.Linear on every step, as in examples/sine_to_cosine.py",
    "export": "torch.export.export(layer, ...), which takes our layers, or recollect.save and recollect.stream",
    "lab": "the programs in examples/, such as examples/error_surface.py",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        raise AttributeError(f"recollect.{name} is not built yet; until then use {_LATER[name]}")
    if name not in _HOME:
        raise AttributeError(f"module 'recollect' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module = importlib.import_module(_HOME[name])
    value = module if _HOME[name] == f"recollect.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
