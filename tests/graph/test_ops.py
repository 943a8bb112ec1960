"""Every row of the table of operations, by discovery: its value and its derivative are torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recollect.cells import Cell
from recollect.cells.cell import cell
from recollect.graph import ops
from recollect.graph.graph import Builder, vjp
from recollect.graph.trace import TorchTarget

ANY = [-1e4, -30.0, -2.5, -1.0, -0.7, -0.1, -0.0, 0.0, 0.1, 0.7, 1.0, 2.5, 6.0, 30.0, 1e4]
SMALL = [-30.0, -2.5, -1.0, -0.1, 0.0, 0.1, 0.7, 1.0, 2.5, 30.0]
POSITIVE = [1e-8, 0.1, 0.7, 1.0, 2.5, 1e4]
NOT_ZERO = [-1e4, -2.5, -1.0, -1e-3, 1e-3, 0.7, 1.0, 1e4]
FROM_ZERO = [0.0, *POSITIVE]

# row -> (a spelling that a user writes, the points) ...
UNARY = {
    "add": [(lambda x: x + 2.5, ANY), (lambda x: 2.5 + x, ANY), (lambda x: torch.add(x, x, alpha=3), ANY)],
    "sub": [(lambda x: x - 2.5, ANY), (lambda x: torch.sub(x, 1.0, alpha=2), ANY)],
    "rsub": [(lambda x: 1 - x, ANY), (lambda x: torch.rsub(x, 2.0, alpha=3), ANY)],
    "mul": [
        (lambda x: 3 * x, ANY),
        (lambda x: x * x, ANY),
        (lambda x: -1 * x, ANY),
        (lambda x: x * torch.tensor(3.0), ANY),
    ],
    "div": [(lambda x: x / 3, ANY), (lambda x: 2 / (x * x + 1), ANY)],
    "neg": [(lambda x: -x, ANY), (torch.negative, ANY)],
    "abs": [(torch.abs, ANY), (abs, ANY)],
    "exp": [(torch.exp, SMALL)],
    "log": [(torch.log, POSITIVE)],
    "sqrt": [(torch.sqrt, FROM_ZERO), (lambda x: x**0.5, FROM_ZERO)],
    "power": [
        (lambda x: x**1.7, FROM_ZERO),
        (lambda x: torch.pow(x, -1.7), POSITIVE),
        (lambda x: x**-2, NOT_ZERO),
        (lambda x: x**4, ANY),
    ],
    "pow": [
        (lambda x: x**2, ANY),
        (lambda x: x**3, ANY),
        (lambda x: x**1, ANY),
        (lambda x: x**-1, NOT_ZERO),
        (lambda x: x**0 * x, ANY),
    ],
    "square": [(torch.square, ANY)],
    "reciprocal": [(lambda x: 1 / x, NOT_ZERO), (torch.reciprocal, NOT_ZERO)],
    "sigmoid": [(torch.sigmoid, ANY), (F.sigmoid, ANY)],
    "tanh": [(torch.tanh, ANY), (lambda x: x.tanh(), ANY)],
    "relu": [(torch.relu, ANY), (F.relu, ANY)],
    "leaky_relu": [(F.leaky_relu, ANY), (lambda x: F.leaky_relu(x, 0.3), ANY)],
    "softplus": [
        (F.softplus, ANY),
        (lambda x: F.softplus(x, beta=2.0), ANY),
        (lambda x: F.softplus(x, threshold=1.0), ANY),
        (lambda x: F.softplus(x, 0.5, 3.0), ANY),
    ],
    "logsigmoid": [(F.logsigmoid, ANY)],
    "silu": [(F.silu, ANY)],
    "gelu": [(lambda x: F.gelu(x, approximate="tanh"), SMALL)],
    "sin": [(torch.sin, ANY)],
    "cos": [(torch.cos, ANY)],
    "clamp": [
        (lambda x: torch.clamp(x, -1.0, 2.5), ANY),
        (lambda x: torch.clip(x, -1, 1), ANY),
        (lambda x: x.clamp(1.0, -1.0), ANY),
        (lambda x: x.clamp(max=0.7), ANY),
        (lambda x: x.clamp(min=-0.1), ANY),
    ],
    "clamp_min": [(lambda x: torch.clamp_min(x, -1.0), ANY)],
    "clamp_max": [(lambda x: torch.clamp_max(x, 2.5), ANY)],
    "hardtanh": [(F.hardtanh, ANY), (F.relu6, ANY)],
    "zeros_like": [(lambda x: x + torch.zeros_like(x), ANY)],
    "ones_like": [(lambda x: x * torch.ones_like(x), ANY)],
    "full_like": [(lambda x: x * torch.full_like(x, 2.5), ANY)],
    "clone": [(lambda x: x.clone() * 2, ANY)],
    "detach": [(lambda x: x * x.detach(), ANY)],
    "softsign": [(F.softsign, ANY)],  # no row: torch writes it with others
}

BINARY = {
    "add": [torch.add],
    "sub": [torch.sub],
    "mul": [torch.mul],
    "div": [lambda x, y: x / (y * y + 1)],
    "minimum": [torch.minimum, torch.min],
    "maximum": [torch.maximum, torch.max, lambda x, y: torch.maximum(torch.tanh(x), y)],
    "where": [
        lambda x, y: torch.where(x > 0, x * y, y),
        lambda x, y: torch.where(x > y, 0.0, y),
        lambda x, y: torch.where(x > y, x, 2),
        lambda x, y: y * torch.where(x > y, 1.0, -1.0),
    ],
    "lt": [lambda x, y: torch.where(x < y, x, 2 * y), lambda x, y: torch.where(x < 1, x, y), lambda x, y: (x < y) * x],
    "le": [lambda x, y: torch.where(x <= y, x, 2 * y), lambda x, y: torch.where(x <= 1, x, y)],
    "gt": [
        lambda x, y: torch.where(x > y, x, 2 * y),
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: (x > y).to(x.dtype) * x,
    ],
    "ge": [lambda x, y: torch.where(x >= y, x, 2 * y), lambda x, y: torch.where(x >= 1, x, y)],
    "eq": [
        lambda x, y: torch.where(x == y, x, 2 * y),
        lambda x, y: torch.where(x == 0, x, y),
        lambda x, y: torch.where((x < 0) == (y < 0), x, y),
    ],
    "ne": [lambda x, y: torch.where(x != y, x, 2 * y), lambda x, y: torch.where(x != 1, x, y)],
}

CASES = [
    pytest.param(function, points, id=f"{row}-{i}")
    for row in {**UNARY, **BINARY}
    for i, (function, *points) in enumerate(UNARY.get(row, []) + [(f, ANY, ANY) for f in BINARY.get(row, [])])
]


def one_op_cell(function, arity) -> Cell:
    if arity == 1:

        def step(inp, rec, prev):
            return function(inp.a)
    else:

        def step(inp, rec, prev):
            return function(inp.a, rec.a)

    return cell(gates="a", states="h")(step)


def grid(points):
    """Every combination of the points, so that ties occur."""
    return [
        p.reshape(-1) for p in torch.meshgrid(*(torch.tensor(p, dtype=torch.float64) for p in points), indexing="ij")
    ]


@pytest.mark.parametrize(("function", "points"), CASES)
def test_value_and_derivative_are_torchs(function, points):
    leaves = [value.requires_grad_() for value in grid(points)]
    expected = function(*leaves)
    grads = torch.autograd.grad(expected.sum(), leaves, materialize_grads=True)

    builder = Builder()
    graph = one_op_cell(function, len(leaves)).graph
    out = builder.import_graph(graph)[dict(graph.outputs)["h"]]
    names = ["inp.a", "rec.a"][: len(leaves)]
    derivatives = vjp([(out, builder.const(1.0))], [builder.leaf(name) for name in names])
    derivatives = [d if d is not None else builder.const(0.0) for d in derivatives]
    both = builder.build({"value": out, **dict(zip(names, derivatives, strict=True))})
    found = both.evaluate({name: value.detach() for name, value in zip(names, leaves, strict=True)}, TorchTarget())

    # Beyond its threshold of 20 torch's softplus is x, 2e-9 from the truth.
    close = {"rtol": 1e-13, "atol": 3e-9 if "softplus" in str(graph.nodes) else 1e-12, "equal_nan": True}
    for name, wanted in zip(("value", *names), (expected.detach(), *grads), strict=True):
        value = torch.as_tensor(found[name], dtype=torch.float64).expand_as(wanted)
        torch.testing.assert_close(value, wanted, **close)


def test_every_row_has_a_case():
    rows = {row.name for row in ops.BY_ATEN.values()} | ops.ROWS.keys()
    assert rows <= UNARY.keys() | BINARY.keys()


@pytest.mark.parametrize("row", [row for row in (*UNARY, *BINARY) if row in ops.ROWS])
def test_a_case_reaches_its_primitive(row):
    """So that the row which a case is meant for is the one that it tests."""
    functions = [(f, 1) for f, _ in UNARY.get(row, [])] + [(f, 2) for f in BINARY.get(row, [])]
    # x + y with a number or a sign is simplified, so one case that shows the row is enough.
    assert any(row in {node.op for node in one_op_cell(f, arity).graph.nodes} for f, arity in functions)


@pytest.mark.parametrize("row", {id(row): row for row in ops.BY_ATEN.values()}.values(), ids=lambda row: row.name)
def test_every_aten_name_exists(row):
    for name in row.aten:
        namespace, operator, overload = name.split(".")
        assert overload in getattr(getattr(torch.ops, namespace), operator).overloads()


def test_an_infinite_gradient_does_not_leak_into_the_branch_not_taken():
    builder = Builder()
    x, y, g = builder.leaf("inp.a"), builder.leaf("rec.a"), builder.leaf("prev.g")
    found = {}
    for name in ("minimum", "maximum"):
        out = builder.apply(name, x, y)
        found[f"{name}.x"], found[f"{name}.y"] = vjp([(out, g)], [x, y])
    found["relu"] = vjp([(builder.apply("relu", x), g)], [x])[0]
    found["abs"] = vjp([(builder.apply("abs", x * 0.0), g)], [x])[0]
    leaves = {"inp.a": torch.tensor(-1.0), "rec.a": torch.tensor(2.0), "prev.g": torch.tensor(torch.inf)}
    values = {k: float(v) for k, v in builder.build(found).evaluate(leaves, TorchTarget()).items()}
    assert values["minimum.x"] == values["maximum.y"] == torch.inf
    assert values["minimum.y"] == values["maximum.x"] == values["relu"] == values["abs"] == 0.0


def test_listing_names_what_a_user_can_write():
    listed = ops.listing().split(", ")
    assert {"sigmoid", "gelu", "softsign", "where", "clamp", "logsigmoid", "pow"} <= set(listed)
    assert listed == sorted(listed)
    assert "aten" not in ops.listing()
