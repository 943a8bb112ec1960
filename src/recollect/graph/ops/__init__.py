"""The operations a step may use: one row each.

A row says which ATen operators it is traced from, what its partial derivatives are (in these same
operations), how it is printed into any target, and how it is written on paper. Adding an operation is
adding a row to the file of its kind; the tests discover it and compare its value and derivative with torch.

Rows are of two kinds (`row.py`). A *primitive* (`Op`) stays in the graph. A *derived* row (`Derived`) is
written in terms of other rows when it is traced, so it needs no derivative and no printing of its own.
"""

from __future__ import annotations

from recollect.graph.ops import activations, arithmetic, choices, constants, functions, rounding
from recollect.graph.ops.row import Derived, Op, Row, Target

__all__ = ["BY_ATEN", "ROWS", "Derived", "Op", "Target", "listing"]

_KINDS: dict[str, tuple[Row, ...]] = {
    "arithmetic": arithmetic.ROWS,
    "functions": functions.ROWS,
    "activations": activations.ROWS,
    "rounding": rounding.ROWS,
    "conditions and choices": choices.ROWS,
    "constants": constants.ROWS,
}
_ALL = tuple(row for rows in _KINDS.values() for row in rows)

ROWS: dict[str, Op] = {row.name: row for row in _ALL if isinstance(row, Op)}

BY_ATEN: dict[str, Row] = {aten: row for row in _ALL for aten in row.aten}

# Rows that only others use, or refuse; and what torch writes with several rows.
_UNSPOKEN = {"clone", "rsub", "power", "sub", "heaviside"}
_COMPOSED = {
    "arithmetic": {"subtract"},
    "activations": {"relu6", "selu", "softsign", "tanhshrink"},
    "conditions and choices": {"isfinite"},
}


def listing() -> str:
    """The operations a step may use, for error messages: a line for each kind."""
    lines = []
    for kind, rows in _KINDS.items():
        names = {row.name for row in rows} - _UNSPOKEN | _COMPOSED.get(kind, set())
        lines.append(f"\n  {kind}: " + ", ".join(sorted(names)))
    return "".join(lines)
