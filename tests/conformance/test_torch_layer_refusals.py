"""What torch.nn.RNN, LSTM and GRU do with empty input, and the calls that they refuse: ours refuse them too."""

from __future__ import annotations

import pytest
import torch

from against_torch import (
    TORCH_ERRORS,
    B,
    H,
    I,
    P,
    T,
    assert_same,
    drawn,
    dtypes,
    kinds,
    pair,
    projections_warn,
    shapes,
    states,
)
from recollect import nn
from recollect.errors import InputError, OptionError
from tolerances import assert_equal
from versions import TORCH

pytestmark = projections_warn

# ---------------------------------------------------------------- empty input


@kinds
@pytest.mark.parametrize("given", [True, False], ids=["hx", "no hx"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["1", "2x2"])
@dtypes
def test_a_batch_of_nothing(kind, given, options, dtype):
    """N = 0: torch returns empty tensors, and gradients of zeros."""
    ours, theirs = pair(kind, dtype=dtype, **options)
    hx = states(kind, 4 if options else 1, 0, dtype=dtype) if given else None
    assert_same(ours, theirs, drawn(T, 0, I, dtype=dtype), hx)
    assert shapes(ours(torch.zeros(T, 0, I, dtype=dtype))) == shapes(theirs(torch.zeros(T, 0, I, dtype=dtype)))


@kinds
def test_a_batch_of_nothing_with_batch_first(kind):
    """N = 0 in the first dimension."""
    ours, theirs = pair(kind, batch_first=True)
    assert shapes(ours(torch.zeros(0, T, I))) == shapes(theirs(torch.zeros(0, T, I)))


@kinds
@pytest.mark.parametrize("shape", [(0, B, I), (0, 0, I), (0, I)], ids=str)
def test_no_steps(kind, shape):
    """L = 0: torch refuses it."""
    ours, theirs = pair(kind)
    with pytest.raises(RuntimeError, match="sequence length"):
        theirs(torch.zeros(shape))
    with pytest.raises(InputError):
        ours(torch.zeros(shape))


# ---------------------------------------------------------------- calls that do not fit

ONE, TWO = "RNN tanh, RNN relu, GRU", "LSTM, LSTM proj_size"  # kinds with one state, with two
ALL = f"{ONE}, {TWO}"


def zeros(*shape, **options):
    return torch.zeros(shape, **options)


def hidden(kind, *leading, **options):
    """Zeros in the form of hx."""
    h = zeros(*leading, (P if "proj_size" in kind else H), **options)
    return (h, zeros(*leading, H, **options)) if kind.startswith("LSTM") else h


# Name -> (the kinds that it concerns, the call); the layer is (I, H), the good input (T, B, I).
CALLS = {
    "input of no dimension": (ALL, lambda layer, kind: layer(zeros())),
    "input of one dimension": (ALL, lambda layer, kind: layer(zeros(I))),
    "input of four dimensions": (ALL, lambda layer, kind: layer(zeros(1, T, B, I))),
    "other number of features": (ALL, lambda layer, kind: layer(zeros(T, B, I + 1))),
    "no features": (ALL, lambda layer, kind: layer(zeros(T, B, 0))),
    "other number of features, unbatched": (ALL, lambda layer, kind: layer(zeros(T, I + 1))),
    "input of another dtype": (ALL, lambda layer, kind: layer(zeros(T, B, I).double())),
    "input of half precision": (ALL, lambda layer, kind: layer(zeros(T, B, I).half())),
    "input of integers": (ALL, lambda layer, kind: layer(zeros(T, B, I).long())),
    "input on another device": (ALL, lambda layer, kind: layer(zeros(T, B, I, device="meta"))),
    "a list as input": (ALL, lambda layer, kind: layer([[0.0] * I])),
    "nothing as input": (ALL, lambda layer, kind: layer(None)),
    "2-D hx for 3-D input": (ALL, lambda layer, kind: layer(zeros(T, B, I), hidden(kind, B))),
    "3-D hx for 2-D input": (ALL, lambda layer, kind: layer(zeros(T, I), hidden(kind, 1, 1))),
    "1-D hx for 2-D input": (ALL, lambda layer, kind: layer(zeros(T, I), hidden(kind))),
    "hx of another batch": (ALL, lambda layer, kind: layer(zeros(T, B, I), hidden(kind, 1, B - 1))),
    "hx of one row for many": (ALL, lambda layer, kind: layer(zeros(T, B, I), hidden(kind, 1, 1))),
    "hx of more layers": (ALL, lambda layer, kind: layer(zeros(T, B, I), hidden(kind, 2, B))),
    "hx with the batch first": (ALL, lambda layer, kind: layer(zeros(T, B, I), hidden(kind, B, 1))),
    "hx of another dtype": (ALL, lambda layer, kind: layer(zeros(T, B, I), hidden(kind, 1, B, dtype=torch.float64))),
    "hx on another device": (ALL, lambda layer, kind: layer(zeros(T, B, I), hidden(kind, 1, B, device="meta"))),
    "a number as hx": (ALL, lambda layer, kind: layer(zeros(T, B, I), 0.0)),
    "hx of another size": (ONE, lambda layer, kind: layer(zeros(T, B, I), zeros(1, B, H + 1))),
    "two states for one": (ONE, lambda layer, kind: layer(zeros(T, B, I), (zeros(1, B, H),) * 2)),
    "h of another size": (TWO, lambda layer, kind: layer(zeros(T, B, I), (zeros(1, B, H + 1), zeros(1, B, H)))),
    "c of another size": (TWO, lambda layer, kind: layer(zeros(T, B, I), (hidden(kind, 1, B)[0], zeros(1, B, H + 1)))),
    "c of another batch": (TWO, lambda layer, kind: layer(zeros(T, B, I), (hidden(kind, 1, B)[0], zeros(1, 1, H)))),
    "no c": (TWO, lambda layer, kind: layer(zeros(T, B, I), (hidden(kind, 1, B)[0], None))),
    "h alone in a tuple": (TWO, lambda layer, kind: layer(zeros(T, B, I), hidden(kind, 1, B)[:1])),
    "h alone": (TWO, lambda layer, kind: layer(zeros(T, B, I), hidden(kind, 1, B)[0])),
    "three states for two": (TWO, lambda layer, kind: layer(zeros(T, B, I), (*hidden(kind, 1, B), zeros(1, B, H)))),
}


@pytest.mark.parametrize(
    ("case", "kind"), [(case, kind) for case, (whom, _) in CALLS.items() for kind in whom.split(", ")]
)
def test_a_call_that_torch_refuses(case, kind):
    """Where torch raises, an error of ours is raised."""
    ours, theirs = pair(kind)
    with pytest.raises(TORCH_ERRORS):
        CALLS[case][1](theirs, kind)
    with pytest.raises(InputError):
        CALLS[case][1](ours, kind)


CONSTRUCTIONS = {
    "input_size=0": {"input_size": 0},
    "input_size=2.0": {"input_size": 2.0},
    "hidden_size=0": {"hidden_size": 0},
    "hidden_size=-1": {"hidden_size": -1},
    "hidden_size='4'": {"hidden_size": "4"},
    "num_layers=0": {"num_layers": 0},
    "num_layers=1.5": {"num_layers": 1.5},
    "dropout=2": {"num_layers": 2, "dropout": 2},
    "dropout=-0.1": {"num_layers": 2, "dropout": -0.1},
    "dropout=True": {"num_layers": 2, "dropout": True},
    "dropout='0.5'": {"num_layers": 2, "dropout": "0.5"},
    "bias=1": {"bias": 1},
    "bias=None": {"bias": None},
    "batch_first=1": {"batch_first": 1},
}


NOT_BY_ALL = {"input_size=0", "bias=1", "bias=None", "batch_first=1"}  # torch 2.9 takes these, 2.13 does not


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("case", CONSTRUCTIONS)
def test_a_construction_that_torch_refuses(name, case):
    """Where torch raises, an error of ours is raised."""
    arguments = {"input_size": I, "hidden_size": H} | CONSTRUCTIONS[case]
    if TORCH >= (2, 13) or case not in NOT_BY_ALL:
        with pytest.raises(TORCH_ERRORS):
            getattr(torch.nn, name)(**arguments)
    with pytest.raises(InputError):
        getattr(nn, name)(**arguments)


@kinds
def test_an_error_of_a_call_is_of_both_of_torchs_types(kind):
    """torch.nn raises ValueError for one call and RuntimeError for the next: whoever catches either catches ours."""
    ours, _ = pair(kind)
    for error_type in (ValueError, RuntimeError, InputError):
        with pytest.raises(error_type):
            ours(zeros(T, B, I + 1))


@pytest.mark.parametrize("library", [nn, torch.nn], ids=["ours", "torch"])
@pytest.mark.parametrize("name", ["RNN", "GRU"])
@pytest.mark.parametrize("size", [0, 2])
def test_a_projection_is_the_lstms_alone(library, name, size):
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
        getattr(library, name)(I, H, 2, proj_size=size)


@pytest.mark.parametrize("library", [nn, torch.nn], ids=["ours", "torch"])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_an_argument_that_there_is_not(library, name):
    with pytest.raises(TypeError, match="dropuot"):
        getattr(library, name)(I, H, dropuot=0.5)


def test_an_unknown_argument_is_answered_with_the_known_ones():
    with pytest.raises(OptionError, match=r"GRU has no argument 'zonout'; given: zonout=0.1; expected: .*zoneout"):
        nn.GRU(I, H, zonout=0.1)


@pytest.mark.parametrize("library", [nn, torch.nn], ids=["ours", "torch"])
def test_the_nonlinearity_of_the_rnn(library):
    """ "nonlinearity: ... Can be either 'tanh' or 'relu'"."""
    with pytest.raises(ValueError, match="gelu"):
        library.RNN(I, H, nonlinearity="gelu")
    for name in ("LSTM", "GRU"):
        with pytest.raises(TypeError, match="nonlinearity"):
            getattr(library, name)(I, H, nonlinearity="tanh")


def test_lists_of_two_states():
    """torch takes a list where its page says (h_0, c_0)."""
    ours, theirs = pair("LSTM", dtype=torch.float64)
    x, hx = drawn(T, B, I), list(states("LSTM", 1, B))
    assert_equal(ours(x, hx)[0], theirs(x, hx)[0])
