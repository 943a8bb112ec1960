"""A cell's equations as plain text for a terminal, printed from its graph."""

from __future__ import annotations

from recollect.cells import Cell
from recollect.graph import ops
from recollect.graph.graph import Node

_INFIX = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} · {}",
    "div": "{} / {}",
    "neg": "-{}",
    "power": "{}^{}",
    "lt": "{} < {}",
    "le": "{} ≤ {}",
    "gt": "{} > {}",
    "ge": "{} ≥ {}",
    "eq": "{} = {}",
    "ne": "{} ≠ {}",
}
_FUNCTION = {"sigmoid": "σ", "log": "ln", "sqrt": "√", "minimum": "min", "maximum": "max"}
_ATOM = 4


def equations(cell: Cell) -> list[str]:
    """One line for each quantity that the author of the cell named, in order, such as ``"i = σ(...)"``."""
    named: dict[int, str] = {}
    aliases = []
    for name, index in dict.fromkeys((*cell.graph.outputs, *cell.graph.names)):
        if named.setdefault(index, name) != name and name in cell.states:
            aliases.append(f"{name} = {named[index]}")
    texts: list[tuple[str, int]] = []
    lines = []
    for index, node in enumerate(cell.graph.nodes):
        text, binds = _text(node, texts)
        if index in named and node.op != "leaf":
            lines.append(f"{named[index]} = {text}")
            text, binds = named[index], _ATOM
        elif index in named:
            aliases.append(f"{named[index]} = {text}")
        texts.append((text, binds))
    return lines + aliases


def _text(node: Node, texts: list[tuple[str, int]]) -> tuple[str, int]:
    """A node as text, and how strongly that text holds together (as `ops.Op.binds`)."""
    if node.op == "leaf":
        return str(node.attr), _ATOM
    if node.op == "const":
        return f"{node.attr:g}", _ATOM
    args = [texts[i] for i in node.args]
    if node.op == "where":
        return f"({args[1][0]} if {args[0][0]} else {args[2][0]})", _ATOM
    if node.op not in _INFIX:
        return f"{_FUNCTION.get(node.op, node.op)}({', '.join(text for text, _ in args)})", _ATOM
    # LaTeX sets a quotient as a fraction, which needs no brackets; on one line it is a product.
    binds = 1 if node.op == "div" else ops.ROWS[node.op].binds
    # What follows a minus or a slash has to hold together by more than the sign itself.
    tight = {"sub": (0, 1), "div": (1, 2), "neg": (1,), "power": (_ATOM,)}.get(node.op, (binds, binds))
    parts = []
    for position, (text, strength) in enumerate(args):
        bare = strength >= tight[position] and not (position and text.startswith("-"))
        parts.append(text if bare else f"({text})")
    if node.op == "power":
        parts.append(f"{node.attr:g}")
    return _INFIX[node.op].format(*parts), binds
