"""What a kernel needs to know about a cell: decided once, from its graph, by no one else.

A gate whose two shares are only ever added needs one accumulator (*fused*: the leaf ``pre.k``); the
others keep their shares apart (``inp.k`` and ``rec.k``). Accumulators are ordered so that the input's
product and the recurrent product each write one contiguous run of them:

    [shares of the input alone | fused | shares of the recurrence alone]

For the backward pass the results of costly operations are saved and cheap arithmetic is done again.

Zoneout and recurrent dropout are changes of the step, so they are made here, to the graph, and every target
has them (`Variant`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from recollect.engine.waves import Waves, cut
from recollect.graph import ops
from recollect.graph.derivatives import vjp
from recollect.graph.gates import activations
from recollect.graph.graph import Builder, Expr, Graph

# The copy of the output that W_hh multiplies, where that is not the output itself. No state of an author's
# begins with an underscore.
FED = "_fed"

# The kinds of leaves that a backward pass finds where its forward pass did.
_AT_HAND = ("prev", "vec", "keep", "mask")


class Variant(NamedTuple):
    """What a kind of call asks for beyond the plain recurrence; each combination is a kernel of its own.

    Attributes:
        zoneout: states are blended with what they were: ``s = k s_prev + (1 - k) s_new``, with k the leaf
            ``keep.s`` (Krueger et al., "Zoneout", 2017; k is 0 or 1 in training, its mean afterwards).
        feed_mask: W_hh multiplies ``m h`` rather than h, with m the leaf ``mask.h`` (Gal & Ghahramani, 2016).
        resets: a row's states may return to their initial values before a step.
        all_states: every state of every step is a result, not only the output.
        bfloat16: products are of numbers rounded to bfloat16; that is up to the kernels, and no part of a plan.
    """

    zoneout: bool = False
    feed_mask: bool = False
    resets: bool = False
    all_states: bool = False
    bfloat16: bool = False


_PLAIN = Variant()


@dataclass(frozen=True)
class Plan:
    """How one cell is computed.

    Attributes:
        gates, vectors: the declaration's names.
        states: the declaration's, and `FED` where the output is masked on its way to W_hh.
        fed: the state that W_hh multiplies.
        outputs: the states whose value at every step is a result.
        given: leaves that each call supplies a number for, row by row and unit by unit, without gradient:
            ``keep.s``, ``mask.h``.
        resets: see `Variant`.
        accumulators: leaf names ``pre.k``, ``inp.k``, ``rec.k`` in kernel order.
        input_range, recurrent_range: the runs of accumulators that x W_ih and h W_hh add to.
        forward: leaves are accumulators, ``prev.s``, ``vec.v`` and those of ``given``; outputs ``next.s`` and
            then ``saved.j``.
        saved: how many values per row and unit the forward pass saves (the outputs ``saved.j``).
        backward: leaves are ``grad.s`` (dL/ds leaving the step), ``saved.j``, ``prev.s``, ``vec.v`` and those
            of ``given``; outputs ``dinp.k``, ``drec.k`` for every gate, ``dprev.s`` and ``dvec.v``.
        activations: the leaves are some of the backward pass's; outputs ``gate.k``, the activation of each gate that
            has one and that these decide.
        split: some gate has different gradients for its two shares.
    """

    gates: tuple[str, ...]
    states: tuple[str, ...]
    vectors: tuple[str, ...]
    fed: str
    outputs: tuple[str, ...]
    given: tuple[str, ...]
    resets: bool
    accumulators: tuple[str, ...]
    input_range: tuple[int, int]
    recurrent_range: tuple[int, int]
    forward: Graph
    saved: int
    backward: Graph
    activations: Graph

    @property
    def own_states(self) -> tuple[str, ...]:
        """The declaration's states alone."""
        return self.states[:-1] if self.states[-1] == FED else self.states

    @cached_property
    def waves(self) -> Waves:
        """``forward`` in parts, as kernels run it."""
        return cut(self.forward)

    @cached_property
    def split(self) -> bool:
        results = dict(self.backward.outputs)
        return any(results[f"dinp.{gate}"] != results[f"drec.{gate}"] for gate in self.gates)

    @property
    def widest_run(self) -> int:
        """The accumulators that a product adds to, of W_ih or of W_hh, whichever has more."""
        return max(last - first for first, last in (self.input_range, self.recurrent_range))

    @cached_property
    def input_gates(self) -> tuple[int, ...]:
        """The gates, by index, whose accumulators x W_ih adds to."""
        return self._gates_of(*self.input_range)

    @cached_property
    def recurrent_gates(self) -> tuple[int, ...]:
        """The gates, by index, whose accumulators h W_hh adds to."""
        return self._gates_of(*self.recurrent_range)

    def _gates_of(self, first: int, last: int) -> tuple[int, ...]:
        return tuple(self.gates.index(name.partition(".")[2]) for name in self.accumulators[first:last])


@lru_cache(maxsize=256)
def make_plan(
    graph: Graph,
    gates: tuple[str, ...],
    states: tuple[str, ...],
    vectors: tuple[str, ...],
    variant: Variant = _PLAIN,
) -> Plan:
    """Derive the plan of a cell from its graph, for one kind of call."""
    fused = tuple(gate for gate in gates if _only_added(graph, gate))
    apart = tuple(gate for gate in gates if gate not in fused)
    inp_only = tuple(f"inp.{gate}" for gate in apart if f"inp.{gate}" in graph.leaves)
    rec_only = tuple(f"rec.{gate}" for gate in apart if f"rec.{gate}" in graph.leaves)
    accumulators = (*inp_only, *(f"pre.{gate}" for gate in fused), *rec_only)

    builder = Builder()
    step = _fuse(builder, graph, fused)
    nexts = {state: step[index] for state, index in graph.outputs}
    given: tuple[str, ...] = ()
    outputs = states if variant.all_states else states[:1]
    if variant.zoneout:
        given += tuple(f"keep.{state}" for state in states)
        nexts = {state: _kept(builder, state, new) for state, new in nexts.items()}
    if variant.feed_mask:
        mask = f"mask.{states[0]}"
        given += (mask,)
        nexts[FED] = nexts[states[0]] * builder.leaf(mask)
        states = (*states, FED)
    seeds = [(nexts[state], builder.leaf(f"grad.{state}")) for state in states]
    wrt = [*accumulators, *(f"prev.{state}" for state in states), *(f"vec.{vector}" for vector in vectors)]
    grads = dict(zip(wrt, vjp(seeds, [builder.leaf(name) for name in wrt]), strict=True))
    zero = builder.const(0.0)

    results: dict[str, Expr] = {}
    for gate in gates:
        for kind in ("inp", "rec"):
            results[f"d{kind}.{gate}"] = grads.get(f"pre.{gate}") or grads.get(f"{kind}.{gate}") or zero
    results |= {f"dprev.{state}": grads[f"prev.{state}"] or zero for state in states}
    results |= {f"dvec.{vector}": grads[f"vec.{vector}"] or zero for vector in vectors}

    saved = _choose_saved(builder, results, nexts)
    known = {
        f"gate.{gate}": step[found.node]
        for gate, found in activations(graph, gates).items()
        if _is_known(builder, step[found.node], saved)
    }
    forward = builder.build(
        {
            **{f"next.{state}": expr for state, expr in nexts.items()},
            **{f"saved.{place}": Expr(builder, index) for place, index in enumerate(saved)},
        }
    )
    return Plan(
        gates=gates,
        states=states,
        vectors=vectors,
        fed=FED if variant.feed_mask else states[0],
        outputs=outputs,
        given=given,
        resets=variant.resets,
        accumulators=accumulators,
        input_range=(0, len(inp_only) + len(fused)),
        recurrent_range=(len(inp_only), len(accumulators)),
        forward=forward,
        saved=len(saved),
        backward=_read_saved(builder, results, saved),
        activations=_read_saved(builder, known, saved),
    )


def _only_added(graph: Graph, gate: str) -> bool:
    """True where inp.gate and rec.gate occur only in the one sum of both."""
    index = {str(node.attr): i for i, node in enumerate(graph.nodes) if node.op == "leaf"}
    pair = (index.get(f"inp.{gate}"), index.get(f"rec.{gate}"))
    if None in pair:
        return False
    users = [i for i, node in enumerate(graph.nodes) if set(node.args) & set(pair)]
    return (
        len(users) == 1
        and graph.nodes[users[0]].op == "add"
        and sorted(graph.nodes[users[0]].args) == sorted(pair)  # pyright: ignore[reportArgumentType]
        and not {i for _, i in graph.outputs} & set(pair)
    )


def _fuse(builder: Builder, graph: Graph, fused: tuple[str, ...]) -> list[Expr]:
    """Copy the step with ``inp.k + rec.k`` replaced by ``pre.k`` for the fused gates."""

    def leaf(name: str) -> Expr:
        kind, _, gate = name.partition(".")
        if gate in fused and kind in ("inp", "rec"):
            # The sum of the two is then pre.k + -0, which the builder folds.
            return builder.leaf(f"pre.{gate}") if kind == "inp" else builder.const(-0.0)
        return builder.leaf(name)

    return builder.import_graph(graph, leaf)


def _kept(builder: Builder, state: str, new: Expr) -> Expr:
    """The state under zoneout; in this form exact where ``keep`` is 0 or 1."""
    keep = builder.leaf(f"keep.{state}")
    return keep * builder.leaf(f"prev.{state}") + (1.0 - keep) * new


def _choose_saved(builder: Builder, results: dict[str, Expr], nexts: dict[str, Expr]) -> list[int]:
    """Choose which values of the forward pass the backward pass reads, as node indices.

    Costly results and pre-activations that it needs are saved. A cheap value is computed again where all
    that it depends on is at hand already, and saved where that would drag in something new.
    """
    # Nodes of the forward pass; all others belong to the backward.
    own = _reachable(builder, nexts.values(), stop=())
    needed = _reachable(builder, results.values(), stop=own) & own

    def saves_itself(index: int) -> bool:
        node = builder.nodes[index]
        return node.op in ops.ROWS and ops.ROWS[node.op].costly

    numbers = {index for index in own if not Expr(builder, index).boolean}
    saved = {index for index in needed if saves_itself(index)}
    at_hand: set[int] = set()  # saved, what the call gives, previous states, vectors, and cheap arithmetic on these
    for index in sorted(own):
        node = builder.nodes[index]
        if node.op == "leaf":
            known = str(node.attr).partition(".")[0] in _AT_HAND
        else:
            known = not saves_itself(index) and at_hand.issuperset(node.args)
        if index in needed and not known and index not in saved:
            # A condition cannot be saved as a number; what it compares can.
            extra = (_reachable(builder, [Expr(builder, index)], stop=numbers) & numbers) - at_hand
            saved |= extra
            at_hand |= extra
            known = index not in extra
        if known or index in saved:
            at_hand.add(index)
    return sorted(saved)


def _is_known(builder: Builder, expr: Expr, saved: list[int]) -> bool:
    """Whether a value of the forward pass can be computed again from what the backward pass reads."""
    leaves = (builder.nodes[index] for index in _reachable(builder, [expr], stop=saved) if index not in saved)
    return all(node.op != "leaf" or str(node.attr).partition(".")[0] in _AT_HAND for node in leaves)


def _read_saved(builder: Builder, results: dict[str, Expr], saved: list[int]) -> Graph:
    """A graph of these results with the saved values as leaves."""
    place = {index: position for position, index in enumerate(saved)}
    target = Builder()
    copies: dict[int, Expr] = {}
    for index in sorted(_reachable(builder, results.values(), stop=place)):
        node = builder.nodes[index]
        if index in place:
            copies[index] = target.leaf(f"saved.{place[index]}")
        else:
            copies[index] = target.copy(node, [copies[i] for i in node.args])
    return target.build({name: copies[expr.index] for name, expr in results.items()})


def _reachable(builder: Builder, roots: Iterable[Expr], stop: Container[int]) -> set[int]:
    """The nodes that the roots depend on, the roots too; what ``stop`` holds is not entered."""
    seen: set[int] = set()
    stack = [expr.index for expr in roots]
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            if index not in stop:
                stack.extend(builder.nodes[index].args)
    return seen
