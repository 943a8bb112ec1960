"""One call made with our module and with torch's: the same weights, the same numbers, the same gradients."""

from __future__ import annotations

import doctest
import textwrap
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from recollect import nn
from tolerances import GRADIENT, VALUE, assert_bits, assert_equal

I, H, P = 3, 4, 2  # input_size, hidden_size, proj_size  # noqa: E741  (the pages' own letters)
T, B = 5, 3

# Name -> torch.nn's class and what else it is made with.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN tanh": ("RNN", {"nonlinearity": "tanh"}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
    "LSTM": ("LSTM", {}),
    "LSTM proj_size": ("LSTM", {"proj_size": P}),
    "GRU": ("GRU", {}),
}
STEP_KINDS = [kind for kind in KINDS if "proj_size" not in kind]  # torch has no LSTMCell with projections
LIBRARIES = {"ours": nn, "torch": torch.nn}

kinds = pytest.mark.parametrize("kind", KINDS)
step_kinds = pytest.mark.parametrize("kind", STEP_KINDS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
libraries = pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)

# torch says once in a process that its fast kernels have no projections; its results are meant all the same.
projections_warn = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

# What torch raises for a call that it cannot serve; it has no type of its own for that.
TORCH_ERRORS = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)


def make(library: Any, kind: str, *, step: bool = False, sizes: tuple[int, int] = (I, H), **options: Any) -> Any:
    """A layer of ``library`` (or with ``step`` a cell), drawn from one seed."""
    name, more = KINDS[kind]
    torch.manual_seed(17)
    return getattr(library, name + ("Cell" if step else ""))(*sizes, **(more | options))


def pair(kind: str, **options: Any) -> tuple[Any, Any]:
    """Our module and torch's, with torch's weights in both."""
    ours, theirs = make(nn, kind, **options), make(torch.nn, kind, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def states(kind: str, *leading: int, dtype: torch.dtype = torch.float64) -> Any:
    """Initial states in torch's form: h, or (h, c) for an LSTM; each [*leading, its size]."""
    h = drawn(*leading, P if "proj_size" in kind else H, dtype=dtype, seed=1)
    return (h, drawn(*leading, H, dtype=dtype, seed=2)) if kind.startswith("LSTM") else h


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in what a module takes or returns."""
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, torch.Tensor) else [each for part in value for each in tensors(part)]


def shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in tensors(value)]


def _leaf(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_leaf(each) for each in value)
    return value.detach().clone().requires_grad_()


def assert_same(ours: Any, theirs: Any, x: torch.Tensor, hx: Any = None, wrap: Any = lambda x: x) -> None:
    """The same results, and the same gradients of the input, the states and every parameter.

    Args:
        wrap: what is done to the leaf ``x`` before the module gets it, such as packing.
    """
    found = []
    for module in (ours, theirs):
        leaves = [_leaf(x)] if hx is None else [_leaf(x), _leaf(hx)]
        results = tensors(module(wrap(leaves[0]), *leaves[1:]))
        loss = sum((each * drawn(*each.shape, dtype=each.dtype, seed=9)).sum() for each in results)
        named = dict(module.named_parameters())
        of = [*tensors(leaves), *named.values()]
        names = [f"argument {place}" for place in range(len(of) - len(named))] + list(named)
        found.append((results, dict(zip(names, torch.autograd.grad(loss, of), strict=True))))
    (results, gradients), (true_results, true_gradients) = found
    assert len(results) == len(true_results)
    for mine, true in zip(results, true_results, strict=True):
        assert mine.dtype == true.dtype
        assert_equal(mine, true, VALUE, "results")
    assert list(gradients) == list(true_gradients)
    for name, true in true_gradients.items():
        assert_equal(gradients[name], true, GRADIENT, f"gradients of {name}")


# ---------------------------------------------------------------- all six classes

# (kind, whether it is the cell rather than the layer)
MODULES = [(kind, False) for kind in KINDS] + [(kind, True) for kind in STEP_KINDS]
modules = pytest.mark.parametrize(("kind", "step"), MODULES, ids=[k + " cell" * s for k, s in MODULES])


def suffix(step: bool) -> str:
    """What the names of the parameters of a layer's first place end in, and those of a cell do not."""
    return "" if step else "_l0"


def given(step: bool, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """An input of a layer, or of a cell."""
    return drawn(*(() if step else (T,)), B, I, dtype=dtype)


def start(kind: str, step: bool, dtype: torch.dtype = torch.float64) -> Any:
    """Initial states of a layer of one place, or of a cell."""
    return states(kind, *(() if step else (1,)), B, dtype=dtype)


def big(kind: str, step: bool) -> tuple[Any, Any]:
    """A pair with every parameter that there can be."""
    more = {} if step else {"num_layers": 2, "bidirectional": True}
    return pair(kind, step=step, dtype=torch.float64, **more)


def assert_same_results(mine: Any, true: Any) -> None:
    for each, expected in zip(tensors(mine), tensors(true), strict=True):
        assert_equal(each, expected)


def assert_same_bits(mine: Any, true: Any) -> None:
    for each, expected in zip(tensors(mine), tensors(true), strict=True):
        assert_bits(each, expected)


# ---------------------------------------------------------------- what is printed on a page


def run_examples(page: Any, library: Any) -> dict[str, Any]:
    """Run the example of a page of torch's documentation with ``nn`` from ``library``; its variables."""
    variables: dict[str, Any] = {"torch": torch, "nn": library}
    torch.manual_seed(3)
    for example in doctest.DocTestParser().get_examples(page.__doc__):
        exec(example.source, variables)
    return {name: value for name, value in variables.items() if name not in ("torch", "nn", "__builtins__")}


def code_block(page: Any) -> str:
    """The ``code-block`` of a page of torch's documentation."""
    _, _, rest = page.__doc__.partition(".. code-block:: python\n")
    code, _, _ = rest.partition("\n    Args:")
    return textwrap.dedent(code)
