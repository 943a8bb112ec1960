"""Bad input is our own error, says what was wrong, and comes before anything is computed or changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import recollect
from recollect import cells, nn
from recollect.engine import dispatch
from recollect.errors import InputError, RecollectError

X = torch.zeros(6, 4, 3)


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


# Name -> (how the layer is called, what the message says).
CALLS = {
    "wrong feature size": (lambda layer: layer(zeros(6, 4, 2)), ["features", "2", "input_size = 3"]),
    "wrong feature size, packed": (lambda layer: layer(pack_sequence([zeros(2, 5)])), ["features", "5", "3"]),
    "one dimension": (lambda layer: layer(zeros(3)), ["dimensions", "(3,)"]),
    "four dimensions": (lambda layer: layer(zeros(1, 6, 4, 3)), ["dimensions", "(1, 6, 4, 3)"]),
    "integers": (lambda layer: layer(X.long()), ["floating-point", "int64"]),
    "booleans": (lambda layer: layer(X.bool()), ["floating-point", "bool"]),
    "complex": (lambda layer: layer(X.to(torch.complex64)), ["floating-point", "complex64"]),
    "numpy array": (lambda layer: layer(X.numpy()), ["tensor", "ndarray"]),
    "list": (lambda layer: layer([[1.0, 2.0, 3.0]]), ["tensor", "list"]),
    "nothing": (lambda layer: layer(None), ["tensor", "NoneType"]),
    "no steps": (lambda layer: layer(zeros(0, 4, 3)), ["empty", "(0, 4, 3)"]),
    "other dtype": (lambda layer: layer(X.double()), ["dtype", "float64", "float32"]),
    "other device": (lambda layer: layer(X.to("meta")), ["device", "meta", "cpu"]),
    "negative length": (lambda layer: layer(X, lengths=[1, -1, 2, 3]), ["length", "-1", "6"]),
    "length beyond T": (lambda layer: layer(X, lengths=[1, 7, 2, 3]), ["length", "7", "6"]),
    "float lengths": (lambda layer: layer(X, lengths=torch.ones(4)), ["lengths", "whole", "float32"]),
    "a float in a list of lengths": (lambda layer: layer(X, lengths=[1, 2.5, 2, 3]), ["lengths", "whole"]),
    "a mask as lengths": (lambda layer: layer(X, lengths=torch.ones(4).bool()), ["lengths", "whole", "bool"]),
    "too few lengths": (lambda layer: layer(X, lengths=[1, 2]), ["lengths", "(2,)", "4"]),
    "a matrix of lengths": (lambda layer: layer(X, lengths=torch.ones(4, 1).long()), ["lengths", "(4, 1)"]),
    "one length for all": (lambda layer: layer(X, lengths=3), ["lengths", "()", "4"]),
    "lengths of a packed sequence": (
        lambda layer: layer(pack_sequence([zeros(2, 3)]), lengths=[2]),
        ["PackedSequence", "lengths"],
    ),
    "one state of two": (lambda layer: layer(X, zeros(1, 4, 5)), ["state", "1 tensor", "(h, c)"]),
    "three states of two": (lambda layer: layer(X, (zeros(1, 4, 5),) * 3), ["state", "3 tensor", "(h, c)"]),
    "state without layers": (lambda layer: layer(X, (zeros(4, 5), zeros(4, 5))), ["'h'", "(4, 5)", "(1, 4, 5)"]),
    "wrong batch in c": (lambda layer: layer(X, (zeros(1, 4, 5), zeros(1, 3, 5))), ["'c'", "(1, 3, 5)", "(1, 4, 5)"]),
    "wrong units in h": (lambda layer: layer(X, (zeros(1, 4, 6), zeros(1, 4, 5))), ["'h'", "(1, 4, 6)"]),
    "batched state, unbatched input": (lambda layer: layer(X[:, 0], (zeros(1, 1, 5),) * 2), ["'h'", "(1, 5)"]),
    "other dtype of a state": (
        lambda layer: layer(X, (zeros(1, 4, 5), zeros(1, 4, 5, dtype=torch.float64))),
        ["'c'", "float64", "float32"],
    ),
    "a number as a state": (lambda layer: layer(X, (zeros(1, 4, 5), 0.0)), ["'c'", "float"]),
    "resets without rows": (lambda layer: layer(X, resets=torch.zeros(6).bool()), ["resets", "(6,)", "(6, 4)"]),
    "resets that are numbers": (lambda layer: layer(X, resets=zeros(6, 4)), ["resets", "float32", ".bool()"]),
    "resets in a list": (lambda layer: layer(X, resets=[[True] * 4] * 6), ["resets", "list"]),
    "a number as the states": (lambda layer: layer(X, 0.0), ["state", "float", "(h, c)"]),
}


@pytest.mark.parametrize("make", [nn.LSTM, lambda *sizes: nn.Recurrent(cells.lstm, *sizes)], ids=["LSTM", "Recurrent"])
@pytest.mark.parametrize("case", CALLS)
def test_a_bad_call(case, make, monkeypatch):
    call, words = CALLS[case]
    monkeypatch.setattr(dispatch, "run", lambda *_, **__: pytest.fail("something was computed"))
    with pytest.raises(InputError) as caught:
        call(make(3, 5))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("lengths", [["a", "b", "c", "d"], [[1], [2, 3]], object()], ids=["text", "ragged", "object"])
def test_lengths_that_are_no_numbers(lengths):
    with pytest.raises(InputError, match="lengths"):
        nn.LSTM(3, 5)(X, lengths=lengths)


PARAMETERS = {
    "dtype": ("weight_hh_l0", torch.zeros(20, 5, dtype=torch.float64)),
    "shape": ("weight_hh_l0", torch.zeros(20, 6)),
    "shape of W_ih": ("weight_ih_l0", torch.zeros(24, 3)),
    "shape of a bias": ("bias_ih_l0", torch.zeros(21)),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_parameter_that_was_replaced_by_one_that_does_not_fit(case):
    """A kernel gets raw addresses, so a wrong dtype or shape must be found before; torch's layers find it too."""
    name, value = PARAMETERS[case]
    layer = nn.LSTM(3, 5)
    setattr(layer, name, torch.nn.Parameter(value))
    with pytest.raises((InputError, RuntimeError)):
        layer(X)


SIZES = [0, -1, 2.0, "3", True]
CONSTRUCTIONS = {
    **{f"hidden_size={size!r}": (lambda size=size: nn.LSTM(3, size), ["hidden_size", str(size)]) for size in SIZES},
    **{f"input_size={size!r}": (lambda size=size: nn.GRU(size, 5), ["input_size", str(size)]) for size in SIZES},
    "a complex dtype": (lambda: nn.LSTM(3, 5, dtype=torch.complex64), ["real numbers", "complex64"]),
    "num_layers=0": (lambda: nn.RNN(3, 5, num_layers=0), ["num_layers", "0"]),
    "dropout=2": (lambda: nn.LSTM(3, 5, 2, dropout=2), ["dropout", "2", "0 to 1"]),
    "dropout=-0.1": (lambda: nn.LSTM(3, 5, 2, dropout=-0.1), ["dropout", "-0.1"]),
    "dropout=nan": (lambda: nn.LSTM(3, 5, 2, dropout=float("nan")), ["dropout", "nan"]),
    "dropout=True": (lambda: nn.LSTM(3, 5, 2, dropout=True), ["dropout", "True"]),
    "nonlinearity": (lambda: nn.RNN(3, 5, nonlinearity="gelu"), ["nonlinearity", "gelu", "tanh"]),
    "a function in place of a cell": (lambda: nn.Recurrent(torch.tanh, 3, 5), ["cell", "recollect.cell"]),
    "a name in place of a cell": (lambda: nn.Recurrent("lstm", 3, 5), ["cell", "lstm", "recollect.cells.lstm"]),
    "proj_size as large as hidden_size": (lambda: nn.LSTM(3, 5, proj_size=5), ["proj_size=5", "hidden_size=5"]),
    "proj_size=-1": (lambda: nn.LSTM(3, 5, proj_size=-1), ["proj_size=-1"]),
    "proj_size of a cell that reads its output": (
        lambda: nn.Recurrent(cells.gru, 3, 5, proj_size=2),
        ["gru", "prev.h", "torch.nn.Linear"],
    ),
    "recurrent_dropout=1.5": (lambda: nn.LSTM(3, 5, recurrent_dropout=1.5), ["recurrent_dropout", "1.5"]),
    "zoneout=-1": (lambda: nn.GRU(3, 5, zoneout=-1), ["zoneout", "-1"]),
    "zoneout for three states of two": (lambda: nn.LSTM(3, 5, zoneout=(0.1, 0.2, 0.3)), ["zoneout", "h, c"]),
}


@pytest.mark.parametrize("case", CONSTRUCTIONS)
def test_a_bad_construction(case):
    construct, words = CONSTRUCTIONS[case]
    before = torch.get_rng_state()
    with pytest.raises(RecollectError) as caught:
        construct()
    for word in words:
        assert word in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_our_errors_are_the_built_in_ones_too():
    with pytest.raises(ValueError, match="features"):
        nn.LSTM(3, 5)(zeros(6, 4, 2))
    with pytest.raises(NotImplementedError, match="triton"):
        recollect.set_backend("triton")


def test_a_layer_works_on_after_an_error():
    layer, x = nn.LSTM(3, 5), torch.randn(6, 4, 3)
    expected = layer(x)[0]
    for call, _ in CALLS.values():
        with pytest.raises(InputError):
            call(layer)
    assert torch.equal(layer(x)[0], expected)


def test_backend_for_checks_its_input_too():
    with pytest.raises(InputError, match="tensor"):
        nn.LSTM(3, 5).backend_for(np.zeros((6, 4, 3), np.float32))


def test_an_error_on_the_reference_is_the_same():
    with recollect.set_backend("reference"):
        for call, words in CALLS.values():
            with pytest.raises(InputError, match=words[0].replace("(", r"\(")):
                call(nn.LSTM(3, 5))
