"""A step's equations as MathML, which browsers set without help."""

from __future__ import annotations

from latex2mathml.converter import convert

from recollect.graph.graph import Graph
from recollect.graph.latex import equations

# In a page of HTML, MathML has its namespace without being told.
_NAMESPACE = ' xmlns="http://www.w3.org/1998/Math/MathML"'


def mathml(graph: Graph) -> list[str]:
    """Write a step in MathML for a page of HTML, one ``<math display="block">`` per equation.

    Args:
        graph: a cell's; its outputs are the states, the first being the one that W_hh multiplies.

    Returns:
        What `equations` says, in the same order.
    """
    return [convert(line, display="block").replace(_NAMESPACE, "", 1) for line in equations(graph)]
