"""A cell's step as data: a small immutable expression graph.

A `Graph` is a tuple of nodes in topological order and the named nodes that are its results. `Builder`
makes graphs: it shares equal subexpressions (hash-consing), folds constants and drops what nothing
uses. `Expr` is a node under construction, with the operators of arithmetic.

Leaves are named ``kind.name``: ``inp.i`` and ``rec.i`` are the input's and the recurrent share of gate
i's pre-activation, ``prev.c`` a state one step ago, ``vec.p`` a per-unit parameter. The plan of the
engine adds kinds of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from recollect.errors import GraphError
from recollect.graph import ops

FORMAT = 1
# What a serialised graph may ask of its reader; the largest of our cells has a twentieth of it.
MAX_TEXT = 2**20  # characters
MAX_NODES = 2_000


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value: ``op`` applied to earlier nodes. ``attr`` is a leaf's name or an op's number.

    Nodes are equal where they compute the same: 0.0 and -0.0 are two numbers here, as 1 / x shows.
    """

    op: str
    args: tuple[int, ...] = ()
    attr: str | float | None = None

    @property
    def _content(self) -> tuple[str, tuple[int, ...], str]:
        return self.op, self.args, repr(self.attr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


@dataclass(frozen=True, eq=False)
class Graph:
    """An immutable expression graph; two are equal, and one key of a dictionary, if content and names are.

    Attributes:
        nodes: in topological order; a node's arguments come before it.
        outputs: name -> index of the node that computes it, in order.
        names: what the author called some of the nodes (for the eye only; not part of `key`).
    """

    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, int], ...]
    names: tuple[tuple[str, int], ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.key == other.key and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def key(self) -> str:
        """SHA-256 of the content: two graphs with one key compute the same."""
        return hashlib.sha256(self._encode(names=False).encode()).hexdigest()

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The names of the leaves that the outputs depend on, in order of first use."""
        return tuple(str(node.attr) for node in self.nodes if node.op == "leaf")

    @cached_property
    def work(self) -> int:
        """About how many instructions the graph takes for a unit; compilers take their time by that."""
        return sum(_COSTLY if node.op in ops.ROWS and ops.ROWS[node.op].costly else 1 for node in self.nodes)

    def to_json(self) -> str:
        """Return canonical JSON; `from_json` of it gives an equal graph."""
        return self._encode(names=True)

    def _encode(self, *, names: bool) -> str:
        body: dict[str, Any] = {
            "format": FORMAT,
            "nodes": [[node.op, list(node.args), _encode_attr(node.attr)] for node in self.nodes],
            "outputs": [list(pair) for pair in self.outputs],
        }
        if names:
            body["names"] = [list(pair) for pair in self.names]
        return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Graph:
        """Read a graph back, trusting nothing in it.

        Raises:
            GraphError: the text is not JSON, not a graph that `to_json` could have written, or too large.
        """
        if not isinstance(text, str):
            raise GraphError("a serialised graph is text", given=type(text).__name__)
        if len(text) > MAX_TEXT:
            raise GraphError("the graph is too large", given=f"{len(text)} characters", expected=f"<= {MAX_TEXT}")
        try:
            body = json.loads(text)
            if type(body["format"]) is not int or body["format"] != FORMAT:
                raise GraphError("the graph has another format", given=body["format"], expected=FORMAT)
            if len(body["nodes"]) > MAX_NODES:
                raise GraphError(
                    "the graph is too large", given=f"{len(body['nodes'])} nodes", expected=f"<= {MAX_NODES}"
                )
            nodes = tuple(_decode_node(index, *row) for index, row in enumerate(body["nodes"]))
            outputs = tuple(_decode_name(len(nodes), *pair) for pair in body["outputs"])
            names = tuple(_decode_name(len(nodes), *pair) for pair in body["names"])
            _check_names(nodes, outputs, names)
        except GraphError:
            raise
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise GraphError("this is not a serialised graph", given=f"{type(error).__name__}: {error}") from error
        _check_kinds(nodes, outputs)
        return Graph(nodes, outputs, names)

    def evaluate(self, leaves: Mapping[str, Any], target: Any) -> dict[str, Any]:
        """Compute the outputs with another target's arithmetic.

        Args:
            leaves: a value of the target for each name in `leaves`.
            target: offers the primitive functions that the rows of `ops` call (see `ops.Target`).
        """
        values = self.values(leaves, target)
        return {name: values[index] for name, index in self.outputs}

    def values(self, leaves: Mapping[str, Any], target: Any) -> list[Any]:
        """Compute the value of every node, in the order of `nodes`; arguments as those of `evaluate`."""
        values: list[Any] = []
        for node in self.nodes:
            if node.op == "leaf":
                values.append(leaves[str(node.attr)])
            elif node.op == "const":
                values.append(target.const(node.attr))
            else:
                extra = () if node.attr is None else (node.attr,)
                values.append(ops.ROWS[node.op].emit(target, *(values[i] for i in node.args), *extra))
        return values


class Expr:
    """A node under construction; supports ``+ - * /``, negation and comparisons with numbers too."""

    __slots__ = ("builder", "index")

    def __init__(self, builder: Builder, index: int) -> None:
        self.builder, self.index = builder, index

    @property
    def node(self) -> Node:
        return self.builder.nodes[self.index]

    @property
    def boolean(self) -> bool:
        """True for a condition: the result of a comparison, or conditions combined."""
        return self.node.op in ops.ROWS and ops.ROWS[self.node.op].boolean

    def __add__(self, other: Expr | float) -> Expr:
        return self.builder.apply("add", self, other)

    def __radd__(self, other: float) -> Expr:
        return self.builder.apply("add", other, self)

    def __sub__(self, other: Expr | float) -> Expr:
        return self.builder.apply("sub", self, other)

    def __rsub__(self, other: float) -> Expr:
        return self.builder.apply("sub", other, self)

    def __mul__(self, other: Expr | float) -> Expr:
        return self.builder.apply("mul", self, other)

    def __rmul__(self, other: float) -> Expr:
        return self.builder.apply("mul", other, self)

    def __truediv__(self, other: Expr | float) -> Expr:
        return self.builder.apply("div", self, other)

    def __rtruediv__(self, other: float) -> Expr:
        return self.builder.apply("div", other, self)

    def __neg__(self) -> Expr:
        return self.builder.apply("neg", self)


class Builder:
    """Makes a graph node by node; equal nodes are one node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._index: dict[Node, int] = {}

    def _intern(self, node: Node) -> Expr:
        if isinstance(node.attr, float) and math.isnan(node.attr):
            raise GraphError("a constant is not a number", given=node.attr)
        index = self._index.get(node)
        if index is None:
            index = self._index[node] = len(self.nodes)
            self.nodes.append(node)
        return Expr(self, index)

    def leaf(self, name: str) -> Expr:
        return self._intern(Node("leaf", attr=name))

    def const(self, value: float) -> Expr:
        return self._intern(Node("const", attr=float(value)))

    def apply(self, op: str, *args: Expr | float, attr: float | None = None) -> Expr:
        """Apply one row of the table. Numbers become constants, conditions used as numbers 0 or 1."""
        row = ops.ROWS[op]
        exprs = [self.const(arg) if isinstance(arg, int | float) else arg for arg in args]
        for position, expr in enumerate(exprs):
            wants_boolean = position in row.boolean_args
            if expr.boolean and not wants_boolean:
                exprs[position] = self.apply("where", expr, 1.0, 0.0)
            elif wants_boolean and not expr.boolean:
                exprs[position] = self.apply("ne", expr, 0.0)
        simpler = _simplify(self, op, exprs)
        if simpler is not None:
            return simpler
        if row.commutes:
            exprs.sort(key=lambda expr: expr.index)
        return self._intern(Node(op, tuple(expr.index for expr in exprs), None if attr is None else float(attr)))

    def copy(self, node: Node, args: Sequence[Expr]) -> Expr:
        """A node of another graph, on arguments of this one."""
        if node.op == "leaf":
            return self.leaf(str(node.attr))
        if node.op == "const":
            return self.const(float(node.attr))  # pyright: ignore[reportArgumentType]
        return self.apply(node.op, *args, attr=node.attr)  # pyright: ignore[reportArgumentType]

    def import_graph(self, graph: Graph, leaf: Callable[[str], Expr] | None = None) -> list[Expr]:
        """Copy a graph's nodes into this one; ``leaf`` may replace leaves. Returns one Expr per node."""
        leaf, copies = leaf or self.leaf, []
        for node in graph.nodes:
            args = [copies[i] for i in node.args]
            copies.append(leaf(str(node.attr)) if node.op == "leaf" else self.copy(node, args))
        return copies

    def build(self, outputs: Mapping[str, Expr], names: Mapping[str, Expr] | None = None) -> Graph:
        """Return the graph of what the outputs need; everything else is dropped."""
        alive: set[int] = set()
        stack = [expr.index for expr in outputs.values()]
        while stack:
            index = stack.pop()
            if index not in alive:
                alive.add(index)
                stack.extend(self.nodes[index].args)
        order = sorted(alive)
        place = {index: position for position, index in enumerate(order)}
        return Graph(
            nodes=tuple(
                Node(node.op, tuple(place[i] for i in node.args), node.attr)
                for node in (self.nodes[index] for index in order)
            ),
            outputs=tuple((name, place[expr.index]) for name, expr in outputs.items()),
            names=tuple((n, place[e.index]) for n, e in (names or {}).items() if e.index in place),
        )


def _constant(expr: Expr) -> float | None:
    return float(expr.node.attr) if expr.node.op == "const" else None  # pyright: ignore[reportArgumentType]


def _simplify(builder: Builder, op: str, args: list[Expr]) -> Expr | None:
    """Exact rewrites only: none may change a value, a NaN, an infinity or the sign of a zero.

    So ``x + 0`` stays, which makes 0 of -0; ``x - 0``, which is ``x + -0``, is ``x``.
    """
    values = [_constant(arg) for arg in args]
    if op in _FOLD and None not in values:
        try:
            folded = _FOLD[op](*values)
        except ZeroDivisionError:
            return None
        return None if math.isnan(folded) else builder.const(folded)
    match op, args, values:
        case ("add", [x, _], [_, 0.0 as zero]) | ("add", [_, x], [0.0 as zero, _]) if math.copysign(1.0, zero) < 0:
            return x
        case ("sub", [x, _], [_, 0.0 as zero]) if math.copysign(1.0, zero) > 0:
            return x
        case ("mul", [x, _], [_, 1.0]) | ("mul", [_, x], [1.0, _]) | ("div", [x, _], [_, 1.0]):
            return x
        case ("mul", [x, _], [_, -1.0]) | ("mul", [_, x], [-1.0, _]):
            return -x
        case ("add", [x, y], _) if y.node.op == "neg":
            return x - Expr(builder, y.node.args[0])
        case ("add", [x, y], _) if x.node.op == "neg":
            return y - Expr(builder, x.node.args[0])
        case ("sub", [x, y], _) if y.node.op == "neg":
            return x + Expr(builder, y.node.args[0])
        case ("neg", [x], _) if x.node.op == "neg":
            return Expr(builder, x.node.args[0])
    return None


_FOLD: dict[str, Callable[..., float]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "neg": lambda x: -x,
}


# Of an operation that is worth saving rather than doing again.
_COSTLY = 25


def is_name(text: str) -> bool:
    """Whether Python would take a text for this very name: ``ﬁ`` it reads as ``fi``."""
    return text.isidentifier() and unicodedata.normalize("NFKC", text) == text


def _encode_attr(attr: str | float | None) -> Any:
    if isinstance(attr, float):
        # JSON has no infinities; a one-element list keeps numbers and leaf names apart.
        return [attr] if math.isfinite(attr) else [repr(attr)]
    return attr


def _decode_attr(attr: Any) -> str | float | None:
    if isinstance(attr, list):
        (value,) = attr
        if value not in ("inf", "-inf") and (type(value) not in (int, float) or not math.isfinite(value)):
            raise GraphError("a constant is not a number", given=value)
        return float(value)
    if attr is None or isinstance(attr, str):
        return attr
    raise GraphError("a node's attribute is neither a name nor a number", given=attr)


def _decode_node(index: int, op: Any, args: Any, attr: Any) -> Node:
    value = _decode_attr(attr)
    if not isinstance(op, str) or not (op in ops.ROWS or op in ("leaf", "const")):
        raise GraphError(f"node {index} has an operation without a row", given=op, expected=ops.listing())
    if not isinstance(args, list) or any(type(i) is not int or not 0 <= i < index for i in args):
        raise GraphError(f"node {index} refers to nodes that do not come before it", given=args)
    if op == "leaf":
        kind, _, name = value.partition(".") if isinstance(value, str) else ("", "", "")
        fits = not args and is_name(kind) and is_name(name)
    elif op == "const":
        fits = not args and isinstance(value, float)
    else:
        row = ops.ROWS[op]
        fits = len(args) == row.arity and isinstance(value, float) == row.takes_number and not isinstance(value, str)
    if not fits:
        raise GraphError(f"node {index} ({op}) has the wrong arguments", given=f"{args}, {value}")
    return Node(op, tuple(args), value)


def _decode_name(count: int, name: Any, index: Any) -> tuple[str, int]:
    if not isinstance(name, str) or type(index) is not int or not 0 <= index < count:
        raise GraphError("a named node does not exist", given=(name, index))
    return name, index


def _check_names(
    nodes: tuple[Node, ...], outputs: tuple[tuple[str, int], ...], names: tuple[tuple[str, int], ...]
) -> None:
    """Nothing is called the same twice, and the author's names are names, for they are shown."""
    leaves = [node.attr for node in nodes if node.op == "leaf"]
    for what, called in (("leaf", leaves), ("output", [n for n, _ in outputs]), ("name", [n for n, _ in names])):
        for name, count in Counter(called).most_common(1):
            if count > 1:
                raise GraphError(f"a {what} occurs twice", given=repr(name))
    for name, _ in names:
        if not is_name(name):
            raise GraphError("a node's name is not a name", given=repr(name))


def _check_kinds(nodes: tuple[Node, ...], outputs: tuple[tuple[str, int], ...]) -> None:
    """Conditions may only be used where one is expected, and nothing else there."""
    boolean = [node.op in ops.ROWS and ops.ROWS[node.op].boolean for node in nodes]
    for index, node in enumerate(nodes):
        for position, arg in enumerate(node.args):
            if boolean[arg] != (position in ops.ROWS[node.op].boolean_args):
                raise GraphError(f"node {index} ({node.op}) mixes numbers and conditions", given=node)
    for name, index in outputs:
        if boolean[index]:
            raise GraphError(f"the output {name!r} is a condition, not a number", given=nodes[index])
