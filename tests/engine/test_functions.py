"""The functions that kernels compute themselves equal torch's, at every kind of number there is."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import recollect
from recollect import nn
from recollect.engine import dispatch
from tolerances import FUNCTION

UNARY = {
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "logsigmoid": torch.nn.functional.logsigmoid,
    "silu": torch.nn.functional.silu,
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "reciprocal": torch.reciprocal,
    "square": torch.square,
    "cube": lambda x: x**3,
    "power_1_7": lambda x: x**1.7,
    "power_minus_2_5": lambda x: x**-2.5,
    "clamp": lambda x: torch.clamp(x, -0.5, 2.0),
}
BINARY = {
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "where_lt": lambda x, y: torch.where(x < y, x, y),
    "where_ge": lambda x, y: torch.where(x >= y, x, y),
    "where_eq": lambda x, y: torch.where(x == y, x, y),
    "where_ne": lambda x, y: torch.where(x != y, x, y),
}
FUNCTIONS = {**UNARY, **BINARY}
# torch's softplus is x beyond 20; ours keeps to the formula.
EXACT = {"softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x))}
EDGES = [0.0, 1.0, 2.0, 0.5, 10.0, 20.0, 88.0, 88.7, 88.8, 87.3, 103.0, 709.7, 709.8, 745.0, 1e4, math.pi]
UNITS = 16


# The points are states, which reach the step as they are: W_hh multiplies h only, and h is 0.
@recollect.cell(gates="a", states="h x other " + " ".join(FUNCTIONS))
def every_function(inp, rec, prev):
    unary = (function(prev.x) for function in UNARY.values())
    binary = (function(prev.x, prev.other) for function in BINARY.values())
    return (inp.a + rec.a, prev.x, prev.other, *unary, *binary)


def points(dtype):
    """Two values for each point, [N, UNITS] each."""
    tiny = torch.finfo(dtype).tiny
    edges = [*EDGES, tiny, tiny / 4, tiny * 2**-20, torch.finfo(dtype).max, math.inf]
    special = torch.tensor([*edges, *(-each for each in edges), math.nan], dtype=torch.float64)
    sweep = [torch.linspace(-25, 25, 4001), torch.logspace(-30, 4, 1000), -torch.logspace(-30, 4, 1000)]
    first = torch.cat([special.repeat_interleave(len(special)), *(each.double() for each in sweep)])
    second = torch.cat([special.repeat(len(special)), *(each.double().flip(0) for each in sweep)])
    pad = -len(first) % UNITS
    fill = torch.ones(pad, dtype=torch.float64)
    return tuple(torch.cat([each, fill]).to(dtype).view(-1, UNITS) for each in (first, second))


@cache
def computed(dtype):
    """(x, other, each function's values): one call of the kernel."""
    layer = nn.Recurrent(every_function, 1, UNITS, bias=False, dtype=dtype)
    x, other = points(dtype)
    zeros = torch.zeros_like(x)
    states = [x if name == "x" else other if name == "other" else zeros for name in every_function.states]
    with torch.no_grad(), recollect.set_backend("llvm"):
        _, final = layer(torch.zeros(1, len(x), 1, dtype=dtype), [each.unsqueeze(0) for each in states])
    return x, other, {name: each.squeeze(0) for name, each in zip(every_function.states, final, strict=True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_equals_torch(name, dtype):
    x, other, found = computed(dtype)
    arguments = (x,) if name in UNARY else (x, other)
    expected, actual = (FUNCTIONS | EXACT)[name](*arguments), found[name]
    if name == "silu":  # sigmoid ends at the smallest normal number, not 0; and torch has NaN at -inf
        x, actual, expected = (each[~(x < -1e4)] for each in (x, actual, expected))
    other_kind = (actual.isnan() != expected.isnan()) | (actual.isinf() != expected.isinf())
    assert not other_kind.any(), (
        f"{name}({x[other_kind][:3]}) = {actual[other_kind][:3]}, not {expected[other_kind][:3]}"
    )
    infinite = expected.isinf()
    assert torch.equal(actual[infinite], expected[infinite])
    finite = expected.isfinite()
    difference = (actual - expected)[finite].abs() / expected[finite].abs().clamp(min=1.0)
    worst = difference.argmax()
    assert difference[worst] <= FUNCTION[dtype], f"{name}({x[finite][worst]}) is off by {difference[worst]:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small_arguments_keep_their_digits(dtype):
    """tanh(x) is x to the last bits near 0, and ln keeps its relative error near 1."""
    x, _, found = computed(dtype)
    small = (x.abs() < 1e-3) & (x.abs() > 1e-30)
    relative = (found["tanh"] - torch.tanh(x))[small].abs() / torch.tanh(x)[small].abs()
    assert relative.max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_at_the_ends_of_the_range(dtype):
    """Saturated gates pass a gradient of 0 and never NaN."""
    x = torch.tensor([0.0, 1.0, -1.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4], dtype=dtype)

    @recollect.cell(gates="a", states="h x s t p")
    def saturating(inp, rec, prev):
        p = torch.nn.functional.softplus(prev.x)
        return inp.a + rec.a, prev.x, torch.sigmoid(prev.x), torch.tanh(prev.x), p

    layer = nn.Recurrent(saturating, 1, len(x), bias=False, dtype=dtype)
    start = x.clone().view(1, 1, -1).requires_grad_()
    rest = torch.zeros_like(start)
    with recollect.set_backend("llvm"):
        assert dispatch.choose(saturating, start).name == "llvm"
        _, final = layer(torch.zeros(1, 1, 1, dtype=dtype), (rest, start, rest, rest, rest))
    truth = x.clone().requires_grad_()
    expected = (torch.sigmoid(truth), torch.tanh(truth), torch.nn.functional.softplus(truth))
    for value, true in zip(final[2:], expected, strict=True):
        (gradient,) = torch.autograd.grad(value.sum(), start, retain_graph=True)
        (true_gradient,) = torch.autograd.grad(true.sum(), truth)
        assert (gradient.view(-1) - true_gradient).abs().max() <= FUNCTION[dtype]
