"""What a cell declares, and whether a graph fits it: of a cell in a file, that is checked without torch."""

from __future__ import annotations

import keyword
import unicodedata
from collections import Counter

from recollect.errors import CellError
from recollect.graph.graph import MAX_NODES, Graph, is_name

# A cell comes from files too, so what it may ask is bounded: names of one kind, and the estimate `Graph.work`, at which
# a compiler takes some seconds for a kernel. The largest of our cells has a tenth of either.
MAX_NAMES = 64
MAX_WORK = 3_200


def declared_names(name: str, *texts: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The names of the gates, states and vectors, from ``texts`` that hold them.

    Raises:
        CellError: one cannot be a name, occurs twice, or is missing, or there are too many.
    """
    if not isinstance(name, str) or not is_name(name):
        raise CellError("a cell is called by the name of its function", given=name, remedy="write the step with def")
    declared: list[tuple[str, ...]] = []
    for what, text in zip(("gates", "states", "vectors"), texts, strict=True):
        if not isinstance(text, str):
            raise CellError(f"cell {name!r}: {what} must be names in one string", given=text, expected=f'{what}="a b"')
        # As Python reads the names in the step's own code: two that look alike may be one.
        names = tuple(unicodedata.normalize("NFKC", written) for written in text.split())
        if len(names) > MAX_NAMES:
            raise CellError(
                f"cell {name!r} has too many {what}", given=f"{len(names)} names", expected=f"<= {MAX_NAMES}"
            )
        for identifier in names:
            if not identifier.isidentifier() or keyword.iskeyword(identifier) or identifier.startswith("_"):
                raise CellError(f"cell {name!r}: {identifier!r} cannot be a name", given=f"{what}={text!r}")
        twice = sorted(identifier for identifier, count in Counter(names).items() if count > 1)
        if twice:
            raise CellError(f"cell {name!r} names {twice[0]!r} twice", given=f"{what}={text!r}")
        declared.append(names)
    for what, names in zip(("gates", "states"), declared, strict=False):
        if not names:
            raise CellError(f"cell {name!r} has no {what}", given=f'{what}=""', expected="at least one name")
    return declared[0], declared[1], declared[2]


def check_graph(
    name: str, gates: tuple[str, ...], states: tuple[str, ...], vectors: tuple[str, ...], graph: Graph
) -> None:
    """Check that a graph computes what its declaration says, from what it says, and can be compiled in some seconds.

    Raises:
        CellError: it does not, or cannot.
    """
    if graph.work > MAX_WORK or len(graph.nodes) > MAX_NODES:
        raise CellError(
            f"cell {name!r} is too large to be compiled",
            given=f"about {graph.work} instructions for each unit in {len(graph.nodes)} operations",
            expected=f"<= {MAX_WORK} in <= {MAX_NODES}",
            remedy="put part of it into a layer of its own, or write it with fewer functions such as tanh and exp",
        )
    known = {f"{kind}.{gate}" for kind in ("inp", "rec") for gate in gates}
    known |= {f"prev.{state}" for state in states} | {f"vec.{vector}" for vector in vectors}
    foreign = sorted(set(graph.leaves) - known)
    if foreign or tuple(n for n, _ in graph.outputs) != states:
        raise CellError(
            f"the graph of cell {name!r} does not fit its declaration",
            given=foreign or [n for n, _ in graph.outputs],
            expected=sorted(known) if foreign else states,
        )
    for gate in gates:
        if not {f"inp.{gate}", f"rec.{gate}"} & set(graph.leaves):
            raise CellError(
                f"cell {name!r} declares gate {gate!r} and never uses it",
                given=f"gates={' '.join(gates)!r}",
                expected=f"inp.{gate} or rec.{gate} in what the step returns",
                remedy=f"use it, or leave {gate!r} out of gates",
            )
    for vector in vectors:
        if f"vec.{vector}" not in graph.leaves:
            raise CellError(
                f"cell {name!r} declares vector {vector!r} and never uses it",
                given=f"vectors={' '.join(vectors)!r}",
                remedy=f"use vec.{vector}, or leave it out of vectors",
            )
