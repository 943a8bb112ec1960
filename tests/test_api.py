"""The public names are a promise: adding one is a decision, so it is made here too."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recollect

NAMES = {
    "recollect": """
        Forecaster __version__ cell cells clip_by_global_norm clip_by_value convert datasets detach_state diagnose
        diagnosis errors load nn release_buffers save set_backend set_precision stream tbptt training
    """,
    "recollect.nn": "GRU GRUCell LSTM LSTMCell RNN RNNCell Recurrent convert init",
    "recollect.cells": "cifg_lstm gru lstm mgu peephole_lstm rnn_relu rnn_tanh slstm",
    "recollect.training": """
        Checkpoints Clipped ClippedValues Evaluation History HistoryFile Observer ProgressBar StopTraining TensorBoard
        clip_by_global_norm clip_by_value detach_state evaluate sliding_windows split_by_time tbptt train
    """,
    "recollect.stream": "Stepper",
    "recollect.datasets": """
        Series adding digits_rows infer_season_length load names read_series sine_to_cosine write
    """,
}
ERRORS = {
    "RecollectError": Exception,
    "BackendError": RuntimeError,
    "CellError": ValueError,
    "DataError": ValueError,
    "GraphError": ValueError,
    "InputError": ValueError,
    "MissingPackageError": ImportError,
    "ModelFileError": ValueError,
    "NotFittedError": ValueError,
    "NotYetError": NotImplementedError,
    "OptionError": TypeError,
    "TrainingError": RuntimeError,
}


@pytest.mark.parametrize("module", NAMES)
def test_public_names(module):
    found = importlib.import_module(module)
    assert sorted(found.__all__) == sorted(NAMES[module].split())
    assert len(set(found.__all__)) == len(found.__all__)
    for name in found.__all__:
        assert getattr(found, name) is not None


def test_errors():
    found = {name: value for name, value in vars(recollect.errors).items() if inspect.isclass(value)}
    assert found.keys() == ERRORS.keys()
    for name, base in ERRORS.items():
        assert issubclass(found[name], base)
        assert issubclass(found[name], recollect.errors.RecollectError)


def test_a_name_is_the_same_object_everywhere():
    assert recollect.convert is recollect.nn.convert
    assert recollect.tbptt is recollect.training.tbptt
    assert recollect.cells is importlib.import_module("recollect.cells")


def test_dir_lists_the_public_names():
    assert sorted(dir(recollect)) == sorted(recollect.__all__)


def test_an_unknown_name_is_answered_with_the_names_there_are():
    with pytest.raises(AttributeError, match="no attribute 'Lstm'") as caught:
        recollect.Lstm  # noqa: B018  (reading it is the test)
    for name in recollect.__all__:
        assert name in str(caught.value)
    with pytest.raises(ImportError):
        from recollect import nothing_of_that_name  # noqa: F401


@pytest.mark.parametrize("name", ["SequenceClassifier", "SequenceRegressor", "SequenceTagger", "export", "lab"])
def test_what_is_promised_and_not_there_says_so(name):
    with pytest.raises(AttributeError, match=r"not built yet; until then use \w"):
        getattr(recollect, name)


def test_modules_with_a_page_in_the_reference_need_no_import_of_their_own():
    text = (Path(__file__).parents[1] / "docs" / "reference.py").read_text(encoding="utf-8")
    pages = set(re.findall(r'"recollect\.(\w+)"', text))
    assert pages
    assert pages <= set(recollect.__all__)


def test_diagnosis_is_there_after_import_recollect_alone():
    code = "import recollect, sys; assert 'torch' not in sys.modules; recollect.diagnosis.Probe"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
