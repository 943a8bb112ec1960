"""Which node of a step is the activation of which gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recollect.graph import ops
from recollect.graph.graph import Graph

Kind = Literal["sigmoid", "tanh", "relu", "other"]

_SHAPES: dict[str, Kind] = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu"}


@dataclass(frozen=True)
class Activation:
    """What a gate's pre-activation becomes.

    Attributes:
        node: the index of the node in the graph.
        kind: ``"sigmoid"`` lies in 0 to 1 (shut to open), ``"tanh"`` in -1 to 1, ``"relu"`` from 0 up;
            ``"other"`` is any function else, such as the exponential gates of the sLSTM.
    """

    node: int
    kind: Kind


def activations(graph: Graph, gates: Sequence[str]) -> dict[str, Activation]:
    """Find the activation of each gate.

    It is the node that the author gave the gate's name, where that is a function of the gate's pre-activation, and
    else the first such function. A gate without one, as in a linear cell, is left out.
    """
    names = dict(graph.names)
    found = {}
    for gate in gates:
        functions = _functions_of(graph, {f"inp.{gate}", f"rec.{gate}"})
        named = names.get(gate)
        node = named if named in functions else min(functions, default=None)
        if node is not None:
            found[gate] = Activation(node, _SHAPES.get(graph.nodes[node].op, "other"))
    return found


def _functions_of(graph: Graph, leaves: set[str]) -> set[int]:
    """The nodes that apply a nonlinear function to something that depends on one of the leaves."""
    dependent, functions = set(), set()
    for index, node in enumerate(graph.nodes):
        if (node.op == "leaf" and node.attr in leaves) or dependent.intersection(node.args):
            dependent.add(index)
            if node.op in _SHAPES or (node.op in ops.ROWS and ops.ROWS[node.op].costly):
                functions.add(index)
    return functions
