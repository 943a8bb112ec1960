"""What a cell declares, and whether a graph fits it: of a cell in a file, that is checked without torch."""

from __future__ import annotations

import keyword

from recollect.errors import CellError
from recollect.graph.graph import Graph


def declared_names(name: str, *texts: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The names of the gates, states and vectors, from ``texts`` that hold them.

    Raises:
        CellError: one cannot be a name, occurs twice, or is missing.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise CellError("a cell is called by the name of its function", given=name, remedy="write the step with def")
    found = []
    for what, text in zip(("gates", "states", "vectors"), texts, strict=True):
        if not isinstance(text, str):
            raise CellError(f"cell {name!r}: {what} must be names in one string", given=text, expected=f'{what}="a b"')
        names = tuple(text.split())
        for each in names:
            if not each.isidentifier() or keyword.iskeyword(each) or each.startswith("_"):
                raise CellError(f"cell {name!r}: {each!r} cannot be a name", given=f"{what}={text!r}")
        twice = sorted({each for each in names if names.count(each) > 1})
        if twice:
            raise CellError(f"cell {name!r} names {twice[0]!r} twice", given=f"{what}={text!r}")
        found.append(names)
    for what, names in zip(("gates", "states"), found, strict=False):
        if not names:
            raise CellError(f"cell {name!r} has no {what}", given=f'{what}=""', expected="at least one name")
    return found[0], found[1], found[2]


def check_graph(
    name: str, gates: tuple[str, ...], states: tuple[str, ...], vectors: tuple[str, ...], graph: Graph
) -> None:
    """Check that a graph computes what its declaration says, from what it says.

    Raises:
        CellError: it does not.
    """
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
