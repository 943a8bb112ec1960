"""The printed equations compute what the cell computes."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

import recollect
from recollect import cells
from recollect.cli.equations import equations


@recollect.cell(gates="a b", states="h c")
def brackets(inp, rec, prev):
    """Every way in which brackets can be needed."""
    a = torch.sigmoid(inp.a + rec.a)
    b = inp.b - (rec.b - a) - (a + 0.5) * (2 - prev.c)
    q = (a + 1) / (a * (b * b + 1.25)) / (a + 2) - -b
    d = (a - b) / (a + 3) * (1 / (a + b * b + 1))
    w = torch.where(a > b, -(a + b), torch.minimum(a, b) * -1.5)
    p = (a + 0.75) ** -1.5 + (a * 2) ** 2.5
    return q + d - (w - p) + torch.log(a + 1) + torch.sqrt(a), -(-prev.c * a)


@recollect.cell(gates="a", states="h c")
def shifted(inp, rec, prev):
    """A state that is another one, a step late."""
    return torch.tanh(inp.a + rec.a + prev.c), prev.h


def evaluate(lines, scope):
    names = {
        "σ": torch.sigmoid, "tanh": torch.tanh, "exp": torch.exp, "ln": torch.log, "√": torch.sqrt,
        "softplus": F.softplus, "relu": torch.relu, "max": torch.maximum, "min": torch.minimum,
    }  # fmt: skip
    for line in lines:
        name, text = line.split(" = ", 1)
        text = text.replace("·", "*").replace("^", "**").replace("≥", ">=").replace("≤", "<=").replace("√", "root")
        # Python's conditional takes one condition; here each entry has its own.
        text = re.sub(r"\((.+) if (.+?) else (.+)\)", r"torch.where(\2, \1, \3)", text)
        scope[name] = eval(text, {**names, "root": torch.sqrt, "torch": torch}, scope)
    return scope


@pytest.mark.parametrize("cell", [*map(cells.by_name, cells.__all__), brackets, shifted], ids=lambda cell: cell.name)
def test_equations_compute_the_cell(cell):
    generator = torch.Generator().manual_seed(0)

    def draw(names):
        return [torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in names]

    inp, rec, prev = cell.Shares(*draw(cell.gates)), cell.Shares(*draw(cell.gates)), cell.States(*draw(cell.states))
    vec = cell.Vectors(*draw(cell.vectors)) if cell.vectors else None
    expected = dict(zip(cell.states, cell(inp, rec, prev, vec), strict=True))
    found = evaluate(equations(cell), {"inp": inp, "rec": rec, "prev": prev, "vec": vec})
    for state, value in expected.items():
        torch.testing.assert_close(found[state], value)


def test_reads_like_the_code():
    assert equations(cells.lstm) == [
        "i = σ(inp.i + rec.i)",
        "f = σ(inp.f + rec.f)",
        "g = tanh(inp.g + rec.g)",
        "o = σ(inp.o + rec.o)",
        "c = prev.c · f + i · g",
        "h = o · tanh(c)",
    ]
