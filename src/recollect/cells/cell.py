"""A cell is one time step, written once, in plain PyTorch."""

from __future__ import annotations

import difflib
import inspect
import json
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch

from recollect.errors import CellError
from recollect.graph.declaration import check_graph, declared_names
from recollect.graph.graph import Graph
from recollect.graph.trace import BATCH, UNITS, TorchTarget, trace


class Cell:
    """One time step, validated and traced once; immutable.

    Made by the decorator `cell` from a function, or by `from_graph` from data. A cell may be called:
    ``cell(inp, rec, prev[, vec])`` runs the step itself, in PyTorch.

    Attributes:
        name: the function's name.
        gates: names of the pre-activations, in the order in which weights are packed.
        states: names of the states; the first is the output and feeds W_hh.
        vectors: names of the per-unit parameters.
        graph: the step as data; its key, not the name, says which cell this is.
        text: the declaration and the graph as JSON.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        gates: tuple[str, ...],
        states: tuple[str, ...],
        vectors: tuple[str, ...],
        graph: Graph,
        doc: str | None,
    ) -> None:
        self._function = function
        self.name, self.gates, self.states, self.vectors = name, gates, states, vectors
        self.graph = graph
        # The declaration and the step as one text: equal texts are equal cells, whoever wrote them.
        self.text = json.dumps([name, *map(" ".join, (gates, states, vectors)), graph.to_json()])
        self.__doc__ = doc
        self.__name__ = name
        self.Shares = namedtuple("Shares", gates)
        self.States = namedtuple("States", states)
        self.Vectors = namedtuple("Vectors", vectors)

    def __call__(self, inp: Any, rec: Any, prev: Any, vec: Any = None) -> tuple[torch.Tensor, ...]:
        """Run one step.

        Args:
            inp: `Shares` of the input, each [B, H]: x W_ih + b_ih for each gate.
            rec: `Shares` of the recurrence, each [B, H]: h W_hh + b_hh for each gate.
            prev: `States` one step ago, each [B, H].
            vec: `Vectors`, each [H]; for cells that have them.

        Returns:
            The new states, each [B, H].
        """
        new = self._function(inp, rec, prev, vec) if self.vectors else self._function(inp, rec, prev)
        return tuple(new) if isinstance(new, tuple | list) else (new,)

    def __repr__(self) -> str:
        vectors = f", vectors={' '.join(self.vectors)!r}" if self.vectors else ""
        return f"<cell {self.name}: gates={' '.join(self.gates)!r}, states={' '.join(self.states)!r}{vectors}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Cell:
        return self

    def __reduce__(self) -> Any:
        # A pickled or copied module carries the step as data, so it needs no source on the other side.
        return Cell.from_text, (self.text,)

    @classmethod
    def from_text(cls, text: str) -> Cell:
        """Make a cell from the ``text`` of another.

        Raises:
            CellError: it is no such text.
            GraphError: what stands there as its graph is none.
        """
        try:
            name, gates, states, vectors, graph = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise CellError("this is not the text of a cell", given=f"{type(error).__name__}: {error}") from error
        return cls.from_graph(name, gates, states, vectors, graph)

    @classmethod
    def from_graph(cls, name: str, gates: str, states: str, vectors: str, graph: str) -> Cell:
        """Make a cell from its declaration and its serialised graph; no code of the author is needed.

        Raises:
            GraphError: ``graph`` is not a serialised graph.
            CellError: the declaration is not valid, or the graph does not fit it.
        """
        declared = declared_names(name, gates, states, vectors)
        parsed = Graph.from_json(graph)
        check_graph(name, *declared, parsed)

        def step(inp: Any, rec: Any, prev: Any, vec: Any = None) -> tuple[torch.Tensor, ...]:
            kinds = {"inp": inp, "rec": rec, "prev": prev, "vec": vec}
            leaves = {}
            for leaf in parsed.leaves:
                kind, _, field = leaf.partition(".")
                leaves[leaf] = getattr(kinds[kind], field)
            like = inp[0]
            values = parsed.evaluate(leaves, TorchTarget(like.dtype))
            return tuple(
                torch.broadcast_to(torch.as_tensor(values[state], dtype=like.dtype, device=like.device), like.shape)
                for state in declared[1]
            )

        return cls(
            step,
            name=name,
            gates=declared[0],
            states=declared[1],
            vectors=declared[2],
            graph=parsed,
            doc=None,
        )


def cell(*, gates: str, states: str, vectors: str = "") -> Callable[[Callable[..., Any]], Cell]:
    """Declare a recurrent cell: one time step in plain PyTorch.

    Args:
        gates: names of the pre-activations, separated by spaces, in the order weights are packed.
        states: names of the states; the first is the output and the one that W_hh multiplies.
        vectors: names of per-unit parameters; if there are any, the step takes a fourth argument.

    Returns:
        A decorator that turns the step ``f(inp, rec, prev[, vec])`` into a `Cell`. ``inp.k`` is
        x W_ih + b_ih of gate k, ``rec.k`` is h W_hh + b_hh, ``prev.s`` a state one step ago; the step
        returns the new states in order. It must be elementwise.

    Raises:
        CellError: the declaration or the step cannot be used; the message quotes the line.

    Example:
        >>> @recollect.cell(gates="f n", states="h")
        ... def leaky(inp, rec, prev):
        ...     f = torch.sigmoid(inp.f + rec.f)
        ...     return f * prev.h + (1 - f) * torch.tanh(inp.n + rec.n)
    """

    def decorate(function: Callable[..., Any]) -> Cell:
        name = getattr(function, "__name__", None)
        if not inspect.isfunction(function) or name is None:
            raise CellError("recollect.cell decorates a function", given=function, remedy="write the step with def")
        declared = declared_names(name, gates, states, vectors)
        graph = _trace(function, *declared)
        check_graph(name, *declared, graph)
        return Cell(
            function,
            name=name,
            gates=declared[0],
            states=declared[1],
            vectors=declared[2],
            graph=graph,
            doc=inspect.getdoc(function),
        )

    return decorate


def _trace(
    function: Callable[..., Any], gates: tuple[str, ...], states: tuple[str, ...], vectors: tuple[str, ...]
) -> Graph:
    wanted = ["inp", "rec", "prev"] + (["vec"] if vectors else [])
    parameters = list(inspect.signature(function).parameters)
    if len(parameters) != len(wanted):
        raise CellError(
            f"cell {function.__name__!r} takes the wrong arguments",
            given=f"def {function.__name__}({', '.join(parameters)})",
            expected=f"def {function.__name__}({', '.join(wanted)})",
        )
    leaves: dict[str, torch.Tensor] = {}
    arguments: dict[str, Any] = {}
    kinds = (("inp", gates), ("rec", gates), ("prev", states), ("vec", vectors))
    for kind, names in kinds:
        if kind in wanted:
            shape = (UNITS,) if kind == "vec" else (BATCH, UNITS)
            # Numbers rather than meta tensors, whose kernels are in Python and would import the compiler.
            tensors = {name: torch.full(shape, 0.5) for name in names}
            leaves.update({f"{kind}.{name}": tensor for name, tensor in tensors.items()})
            arguments[kind] = namedtuple(kind, names)(**tensors)
    try:
        return trace(function, arguments, leaves, states)
    except CellError as error:
        cause = error.__cause__
        kind = type(cause.obj).__name__ if isinstance(cause, AttributeError) else ""
        if isinstance(cause, AttributeError) and kind in wanted:
            known = list(arguments[kind]._fields)
            near = difflib.get_close_matches(str(cause.name), known, 1)
            raise CellError(
                f"cell {function.__name__!r} reads {kind}.{cause.name}, which it does not declare",
                given=error.given,
                expected=", ".join(f"{kind}.{each}" for each in known),
                remedy=f"did you mean {kind}.{near[0]}?" if near else "declare the name in the decorator",
            ) from None
        raise
