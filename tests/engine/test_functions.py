"""The functions that kernels compute themselves equal torch's, at every kind of number there is."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import recollect
from operations import DTYPES, SIGN_OF_ZERO_IS_OPEN, TABLES, open_derivatives, open_values
from recollect import nn
from tolerances import FUNCTION

# name -> row, function, number of its arguments: one spelling of each row; the others use the same primitives.
FUNCTIONS = {
    f"{row}-{arity}": (row, spellings[0], arity) for table, arity in TABLES for row, spellings in table.items()
}
FUNCTIONS["power-negative"] = ("power", lambda x: x**-2.5, 1)
GROUPS = [list(FUNCTIONS)[start::4] for start in range(4)]  # one kernel of all takes LLVM longer than four

# Errors of at most so many units in the last place, relative to results however small.
LAST_PLACES = 3
RELATIVE = (
    "exp", "exp2", "expm1", "log", "log1p", "sigmoid", "erf", "erfc", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "asinh", "acosh", "atanh",
)  # fmt: skip

# torch's softplus is x beyond 20; ours keeps to the formula.
EXACT = {"softplus-1": lambda x: torch.logaddexp(x, torch.zeros_like(x))}

EDGES = [
    *(0.0, 1.0, 2.0, 0.5, 1.5, 2.5, 3.0, 10.0, 20.0, 87.3, 88.0, 88.7, 88.8, 89.4, 89.5, 103.0, 127.9, 128.0),
    *(709.7, 709.8, 710.4, 710.5, 745.0, 1023.9, 1024.0, 1e4, math.pi),
]
UNITS = 16


@cache
def points(dtype):
    """Three values for each point, [N, UNITS] each: special numbers in pairs, and sweeps."""
    tiny = torch.finfo(dtype).tiny
    edges = [*EDGES, tiny, tiny / 4, tiny * 2**-20, torch.finfo(dtype).max, math.inf]
    special = torch.tensor([*edges, *(-each for each in edges), math.nan], dtype=torch.float64)
    # Numbers of 24 bits, whose squares are exact in float64: kernels fuse 1 - x * x, torch does not.
    sweep = [torch.arange(-2000, 2001) / 80, torch.logspace(-30, 4, 1000), -torch.logspace(-30, 4, 1000)]
    first = torch.cat([special.repeat_interleave(len(special)), *(each.double() for each in sweep)])
    second = torch.cat([special.repeat(len(special)), *(each.double().flip(0) for each in sweep)])
    fill = torch.ones(-len(first) % UNITS, dtype=torch.float64)
    x, y = (torch.cat([each, fill]).to(dtype).view(-1, UNITS) for each in (first, second))
    return x, y, x.roll(7, dims=0)


@cache
def read_points(dtype):
    """The same as a kernel reads them: a denormal number counts as 0."""
    return [torch.where(x.abs() < torch.finfo(dtype).tiny, x * 0.0, x) for x in points(dtype)]


def every(names):
    """A cell that computes functions of its states: each has its own, and the first of them becomes the value.

    States reach the step as they are: W_hh multiplies h only, and h is 0. Derivatives do not meet: an infinite
    one of another function would make them NaN.
    """

    def step(inp, rec, prev):
        results = [inp.a + rec.a]
        for name in names:
            _, function, arity = FUNCTIONS[name]
            given = prev[len(results) : len(results) + arity]
            results += [function(*given), *given[1:]]
        return tuple(results)

    states = [f"s{i}_{j}" for i, name in enumerate(names) for j in range(FUNCTIONS[name][2])]
    return recollect.cell(gates="a", states=" ".join(["h", *states]))(step)


@cache
def computed(dtype, group):
    """name -> the values and the derivative by each argument, from one call of the kernels."""
    layer = nn.Recurrent(every(GROUPS[group]), 1, UNITS, bias=False, dtype=dtype)
    given = [[each.unsqueeze(0).clone().requires_grad_() for each in points(dtype)[: FUNCTIONS[name][2]]]
             for name in GROUPS[group]]  # fmt: skip
    h = torch.zeros_like(points(dtype)[0]).unsqueeze(0)
    with recollect.set_backend("llvm"):
        _, final = layer(torch.zeros(1, h.shape[1], 1, dtype=dtype), [h, *(each for some in given for each in some)])
        places = [1 + sum(map(len, given[:index])) for index in range(len(given))]
        torch.autograd.backward([final[place] for place in places], [torch.ones_like(h)] * len(places))
    return {
        name: [final[place].detach()[0], *(each.grad[0] for each in some)]
        for name, place, some in zip(GROUPS[group], places, given, strict=True)
    }


def found(name, dtype):
    return computed(dtype, next(i for i, names in enumerate(GROUPS) if name in names))[name]


def torchs(name, dtype, precision):
    """The same by torch, computed in another precision."""
    _, function, arity = FUNCTIONS[name]
    function = EXACT.get(name, function)
    leaves = [each.to(precision, copy=True).requires_grad_() for each in read_points(dtype)[:arity]]
    value = function(*leaves)
    grads = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
    return [each.detach().to(dtype) for each in (value, *grads)]


def wrong(actual, expected, tolerance, *, signed_zeros):
    infinite = actual.isinf() | expected.isinf()
    difference = torch.where(infinite, 0.0, (actual - expected).abs() / expected.abs().clamp(min=1.0))
    same = torch.where(infinite, actual == expected, difference <= tolerance) | (actual.isnan() & expected.isnan())
    if signed_zeros:
        same &= (actual != 0) | (expected != 0) | (actual.signbit() == expected.signbit())
    return ~same


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_equals_torch(name, dtype):
    """To the tolerance torch's float64, or torch in the same precision, which may overflow on the way."""
    row, _, arity = FUNCTIONS[name]
    leaves = read_points(dtype)[:arity]
    pairs = zip(found(name, dtype), torchs(name, dtype, torch.float64), torchs(name, dtype, dtype), strict=True)
    for place, (actual, *expected) in enumerate(pairs):
        is_value = place == 0
        signed_zeros = is_value and row not in SIGN_OF_ZERO_IS_OPEN
        tolerance = FUNCTION[dtype] * (1 if is_value else 8)
        bad = ~(open_values if is_value else open_derivatives)(row, leaves)
        for truth in expected:
            bad &= wrong(actual, truth, tolerance, signed_zeros=signed_zeros)
        message = [
            f"at {[float(each[i, j]) for each in leaves]}: {float(actual[i, j])}, not {float(expected[0][i, j])}"
            for i, j in bad.nonzero()[:5].tolist()
        ]
        assert not message, ("the value" if is_value else f"the derivative by argument {place}", message)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", RELATIVE)
def test_small_results_keep_their_digits(row, dtype):
    actual, expected = found(f"{row}-1", dtype)[0], torchs(f"{row}-1", dtype, torch.float64)[0]
    info = torch.finfo(dtype)
    # The exponentials are 0 a little before the smallest normal number.
    normal = (expected.abs() > 4 * info.tiny) & expected.isfinite()
    relative = torch.where(normal, (actual - expected).abs() / expected.abs(), 0.0)
    assert relative.max() <= LAST_PLACES * info.eps, f"at {points(dtype)[0].flatten()[relative.argmax()]}"
