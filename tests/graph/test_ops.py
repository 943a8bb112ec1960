"""Every row of the table of operations, by discovery: its value and its derivative are torch's own."""

from __future__ import annotations

import pytest
import torch

from operations import (
    BINARY,
    DTYPES,
    REFUSED,
    SIGN_OF_ZERO_IS_OPEN,
    TABLES,
    TERNARY,
    UNARY,
    differs,
    open_derivatives,
    open_values,
    points,
)
from recollect.cells import Cell
from recollect.cells.cell import cell
from recollect.graph import ops
from recollect.graph.derivatives import vjp
from recollect.graph.graph import Builder
from recollect.graph.trace import TorchTarget

CASES = [
    pytest.param(row, function, arity, id=f"{row}-{arity}-{i}")
    for table, arity in TABLES
    for row, functions in table.items()
    for i, function in enumerate(functions)
]


def one_op_cell(function, arity) -> Cell:
    def step(inp, rec, prev):
        return function(*(inp.a, rec.a, prev.h)[:arity])

    return cell(gates="a", states="h")(step)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("row", "function", "arity"), CASES)
def test_value_and_derivative_are_torchs(row, function, arity, dtype):
    leaves = [value.clone().requires_grad_() for value in points(dtype, arity)]
    expected = function(*leaves)
    grads = torch.autograd.grad(expected.sum(), leaves, materialize_grads=True)

    builder = Builder()
    graph = one_op_cell(function, arity).graph
    out = builder.import_graph(graph)[dict(graph.outputs)["h"]]
    names = ["inp.a", "rec.a", "prev.h"][:arity]
    derivatives = vjp([(out, builder.const(1.0))], [builder.leaf(name) for name in names])
    derivatives = [d if d is not None else builder.const(0.0) for d in derivatives]
    both = builder.build({"value": out, **dict(zip(names, derivatives, strict=True))})
    values = {name: value.detach() for name, value in zip(names, leaves, strict=True)}
    found = both.evaluate(values, TorchTarget(dtype))

    for name, wanted in zip(("value", *names), (expected.detach(), *grads), strict=True):
        actual = torch.as_tensor(found[name], dtype=dtype).expand_as(wanted)
        is_value = name == "value"
        signed_zeros = is_value and row not in SIGN_OF_ZERO_IS_OPEN
        wrong = differs(actual, wanted, dtype=dtype, signed_zeros=signed_zeros)
        wrong &= ~(open_values if is_value else open_derivatives)(row, list(values.values()))
        message = [
            f"{name} at {[float(v[i]) for v in values.values()]} is {float(actual[i])}, not {float(wanted[i])}"
            for i in wrong.nonzero().flatten()[:5].tolist()
        ]
        assert not message, message


def test_every_row_has_a_case():
    rows = {row.name for row in ops.BY_ATEN.values()} | ops.ROWS.keys()
    assert rows - REFUSED <= UNARY.keys() | BINARY.keys() | TERNARY.keys()


@pytest.mark.parametrize("row", list(ops.ROWS))
def test_a_case_reaches_its_primitive(row):
    """So that the row which a case is meant for is the one that it tests."""
    functions = [(function, arity) for table, arity in TABLES for function in table.get(row, [])]
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


def test_listing_names_what_a_user_can_write_by_kind():
    kinds = dict(line.strip().split(": ") for line in ops.listing().strip().splitlines())
    listed = [name for names in kinds.values() for name in names.split(", ")]
    assert {"sigmoid", "gelu", "softsign", "where", "clamp", "logsigmoid", "pow", "isfinite", "lerp"} <= set(listed)
    assert len(set(listed)) == len(listed)
    assert all(names.split(", ") == sorted(names.split(", ")) for names in kinds.values())
    assert "aten" not in ops.listing()
