"""The derivatives of a graph, as a graph: reverse mode, and all derivatives of one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from recollect.graph import ops
from recollect.graph.graph import Builder, Expr, Graph


def vjp(seeds: Sequence[tuple[Expr, Expr]], wrt: Iterable[Expr]) -> list[Expr | None]:
    """Reverse mode, symbolically: one rule per op, in the same builder.

    Args:
        seeds: pairs (node, dL/dnode); gradients of one node add up.
        wrt: the nodes whose gradients are asked for; what they depend on is not entered.

    Returns:
        dL/dnode for each of ``wrt``; None where L does not depend on it.
    """
    targets = list(wrt)
    stop = {expr.index for expr in targets}
    builder = seeds[0][0].builder
    grads: dict[int, Expr] = {}
    for node, grad in seeds:
        grads[node.index] = grads[node.index] + grad if node.index in grads else grad
    for index in range(max(node.index for node, _ in seeds), -1, -1):
        node = builder.nodes[index]
        if index not in grads or index in stop or node.op in ("leaf", "const"):
            continue
        args = [Expr(builder, i) for i in node.args]
        extra = () if node.attr is None else (node.attr,)
        partials = ops.ROWS[node.op].partials(Expr(builder, index), *args, *extra)
        for arg, partial in zip(args, partials, strict=True):
            if partial is None or arg.node.op == "const":
                continue
            share = _product(grads[index], partial)
            grads[arg.index] = grads[arg.index] + share if arg.index in grads else share
    return [grads.get(expr.index) for expr in targets]


@lru_cache(maxsize=128)
def partials(graph: Graph) -> Graph:
    """Derive a step once for each of its states.

    A step is elementwise, so each derivative is a number for each unit: the Jacobian of the step with respect to a
    leaf is a diagonal matrix.

    Returns:
        A graph with the leaves of ``graph``, and for each output s and leaf l an output ``s/l``, ds/dl; where s does
        not depend on l there is none.
    """
    builder = Builder()
    copies = builder.import_graph(graph)
    leaves = [builder.leaf(name) for name in graph.leaves]
    found = {}
    for state, index in graph.outputs:
        for name, derivative in zip(graph.leaves, vjp([(copies[index], builder.const(1.0))], leaves), strict=True):
            if derivative is not None:
                found[f"{state}/{name}"] = derivative
    return builder.build(found)


@lru_cache(maxsize=128)
def node_gradients(graph: Graph, nodes: tuple[int, ...]) -> Graph:
    """Derive a loss with respect to nodes inside a step, from its gradients with respect to the new states.

    Returns:
        A graph with the leaves of ``graph`` and ``grad.s``, dL/ds, for each of its outputs s; its outputs are
        called like the nodes, ``"12"``. Every way from the node to a state counts; where there is none, the
        gradient is 0.
    """
    builder = Builder()
    copies = builder.import_graph(graph)
    seeds = [(copies[index], builder.leaf(f"grad.{state}")) for state, index in graph.outputs]
    found = {}
    for node in nodes:
        (gradient,) = vjp(seeds, [copies[node]])
        found[str(node)] = builder.const(0.0) if gradient is None else gradient
    return builder.build(found)


def _product(grad: Expr, partial: Expr | float) -> Expr:
    """``grad * partial``; where the partial derivative is a choice of constants, a choice of products.

    torch selects too: the gradient of a branch that was not taken is 0 even where ``grad`` is infinite.
    """
    if not isinstance(partial, Expr) or not _chooses_constants(partial):
        return grad * partial
    if partial.node.op == "const":
        return partial if partial.node.attr == 0.0 else grad * partial
    condition, yes, no = (Expr(grad.builder, i) for i in partial.node.args)
    return grad.builder.apply("where", condition, _product(grad, yes), _product(grad, no))


def _chooses_constants(expr: Expr, depth: int = 2) -> bool:
    """True for a constant, and for a choice between such, no deeper than a tie of min and max needs."""
    if expr.node.op != "where" or depth == 0:
        return expr.node.op == "const"
    return all(_chooses_constants(Expr(expr.builder, i), depth - 1) for i in expr.node.args[1:])
