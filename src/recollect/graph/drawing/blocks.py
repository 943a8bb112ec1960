"""A step as the blocks of a drawing: what of its graph is drawn as one box, and how boxes are joined.

Small things are folded, so that a picture shows what its author thought of. Where the two shares of a gate
are only added they are one box, as they are one accumulator in the engine. Numbers and parameters per unit
stand in the operation that they belong to ("1 −", "× p_i"). Sums of sums are one sum. And what is made of a
single value without giving anything in between a name, such as −softplus(−u), is one box.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from recollect.graph import ops
from recollect.graph.drawing import symbols
from recollect.graph.drawing.symbols import Text
from recollect.graph.gates import activations
from recollect.graph.graph import Graph, Node
from recollect.graph.latex import expression

Kind = Literal["input", "previous", "share", "parameter", "number", "gate", "operation", "state"]

# A box with a formula in it holds so many letters, of so many operations; a sum so many terms.
_LETTERS, _OPERATIONS, _TERMS = 24, 8, 6
_SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷"}
_NAMES = {"sigmoid": "σ", "relu": "ReLU", "log": "ln", "minimum": "min", "maximum": "max", "detach": "stop",
          "logical_and": "and", "logical_or": "or", "logical_not": "not", "eq": "=", "ne": "≠"}  # fmt: skip
_BESIDE_A_NUMBER = {("add", 0): "+ {}", ("add", 1): "+ {}", ("mul", 0): "× {}", ("mul", 1): "× {}",
                    ("sub", 0): "{} −", ("sub", 1): "− {}", ("div", 0): "{} ÷", ("div", 1): "÷ {}"}  # fmt: skip


@dataclass(frozen=True)
class Wire:
    """What enters a block.

    Attributes:
        source: the number of the block that it comes from.
        mark: what stands at its end: the sign of a term, or the letter of an argument; mostly nothing.
    """

    source: int
    mark: str = ""


@dataclass(frozen=True)
class Block:
    """One box of a drawing.

    Attributes:
        kind: ``"input"`` is x_t, ``"previous"`` a state one step ago, ``"share"`` what a gate gets from both by
            its weights, ``"gate"`` a gate's activation, ``"state"`` the exit of a new state.
        nodes: the nodes of the graph that it stands for, its value last. None for x_t, for the exit of a state
            and for a state that only W_hh sees.
        label: what stands in it.
        name: what the author called its value; None for an exit, whose label it is.
        gate: the number of the gate that a share or an activation belongs to.
        inputs: in the order of the arguments.
        state: the name of a previous or new state.
        words: what it computes, in a line of plain text.
    """

    kind: Kind
    nodes: tuple[int, ...]
    label: Text
    name: str | None = None
    gate: int | None = None
    inputs: tuple[Wire, ...] = ()
    state: str | None = None
    words: str = ""

    @property
    def round(self) -> bool:
        """A sign alone is drawn in a circle."""
        return self.kind == "operation" and len(self.label) == 1 and self.label[0].text in _SIGNS.values()


def gates_of(graph: Graph) -> tuple[str, ...]:
    """The gates of a step, in the order in which its leaves are declared."""
    shares = (leaf.partition(".") for leaf in graph.leaves)
    return tuple(dict.fromkeys(name for kind, _, name in shares if kind in ("inp", "rec")))


def blocks(graph: Graph) -> list[Block]:
    """The boxes of a step, each after those that it takes its inputs from."""
    return _Folding(graph).blocks()


class _Folding:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.gates = gates_of(graph)
        self.activations = {found.node: gate for gate, found in activations(graph, self.gates).items()}
        self.users: list[list[int]] = [[] for _ in graph.nodes]
        for index, node in enumerate(graph.nodes):
            for arg in node.args:
                self.users[arg].append(index)
        # Where the value of a node is wanted by name, as a gate or as a state, the node keeps a box of its own.
        self.shown = {index for _, index in (*graph.outputs, *graph.names)} | set(self.activations)
        self.first_state = graph.outputs[0][0]
        self.names: dict[int, str] = {}
        for name, index in graph.names:
            self.names.setdefault(index, name)
        self.spoken = {index: f"{name}[t]" for name, index in graph.outputs} | self.names
        self.shares = self._fused_shares()
        self.folded: dict[int, tuple[int, ...]] = {}  # a block's own node -> those folded into it, in order
        self.within: set[int] = set()
        self._fold()
        self.home: dict[int, int] = {}  # a node -> the number of its block

    def blocks(self) -> list[Block]:
        found: list[Block] = []

        def add(block: Block) -> int:
            for index in block.nodes:
                self.home[index] = len(found)
            found.append(block)
            return len(found) - 1

        leaves = {str(node.attr): index for index, node in enumerate(self.graph.nodes) if node.op == "leaf"}
        kinds = {leaf.partition(".")[0] for leaf in leaves}
        x = add(Block("input", (), symbols.symbol("x", "t"), words="the input of this step")) if "inp" in kinds else -1
        states = [name for name, _ in self.graph.outputs if f"prev.{name}" in leaves]
        states += [leaf[5:] for leaf in leaves if leaf.startswith("prev.") and leaf[5:] not in states]
        if "rec" in kinds and self.first_state not in states:
            states.insert(0, self.first_state)
        entry = {}
        for name in states:
            nodes = (leaves[f"prev.{name}"],) if f"prev.{name}" in leaves else ()
            words = f"the state {name} one step ago"
            entry[name] = add(Block("previous", nodes, symbols.state(name, 1), state=name, words=words))
        for index, node in enumerate(self.graph.nodes):
            if index in self.within or (node.op == "const" and not self._stands_alone(index)):
                continue
            if index in self.shares or str(node.attr).startswith(("inp.", "rec.")):
                add(self._share(index, x, entry.get(self.first_state, -1)))
            elif node.op == "leaf" and str(node.attr).startswith("prev."):
                continue
            elif node.op in ("leaf", "const"):
                add(self._constant(index))
            else:
                add(self._operation(index))
        for name, index in self.graph.outputs:
            wire = (Wire(self.home[index]),)
            add(Block("state", (), symbols.state(name, 0), inputs=wire, state=name, words=f"the state {name}"))
        return found

    def _fused_shares(self) -> dict[int, tuple[int, int]]:
        """Sums of the two shares of a gate that nothing else uses."""
        found = {}
        for index, node in enumerate(self.graph.nodes):
            if node.op == "add":
                names = sorted(str(self.graph.nodes[arg].attr) for arg in node.args)
                alone = all(self.users[arg] == [index] and arg not in self._outputs for arg in node.args)
                if alone and names[0].startswith("inp.") and names[1] == f"rec.{names[0][4:]}":
                    found[index] = node.args
        return found

    @property
    def _outputs(self) -> set[int]:
        return {index for _, index in self.graph.outputs}

    def _stands_alone(self, index: int) -> bool:
        """A number has a box where it is a state or has a name, and nothing that it could stand in."""
        return index in self._outputs

    def _fold(self) -> None:
        for args in self.shares.values():
            self.within.update(args)
        for index in range(len(self.graph.nodes) - 1, -1, -1):
            node = self.graph.nodes[index]
            if index in self.within or index in self.shares or node.op in ("leaf", "const"):
                continue
            inside = self._made_of_one_value(index) or self._terms(index)
            inside += tuple(
                arg for i in (index, *inside) for arg in self.graph.nodes[i].args if self._is_inside(arg, i)
            )
            self.folded[index] = tuple(dict.fromkeys(inside))
            self.within.update(inside)

    def _is_inside(self, arg: int, user: int) -> bool:
        """A parameter per unit that is used once, by + − × ÷ and beside something that is none."""
        if not str(self.graph.nodes[arg].attr).startswith("vec.") or arg in self.within | self._outputs:
            return False
        others = [each for each in self.graph.nodes[user].args if each != arg]
        constant = all(self.graph.nodes[each].op == "const" or each in self.within for each in others)
        single = self.users[arg] == [user] and self.graph.nodes[user].op in _SIGNS
        return single and not constant and not any(self._per_unit(each) for each in others)

    def _per_unit(self, index: int) -> bool:
        return str(self.graph.nodes[index].attr).startswith("vec.")

    def _absorbable(self, index: int, group: set[int]) -> bool:
        node = self.graph.nodes[index]
        plain = node.op not in ("leaf", "const") and index not in self.shown and index not in self.shares
        return plain and index not in self.within and group.issuperset(self.users[index])

    def _externals(self, group: Iterable[int]) -> list[int]:
        """What a group of nodes takes in, without numbers, in the order of first use."""
        members = set(group)
        args = (arg for index in sorted(members) for arg in self.graph.nodes[index].args)
        return list(dict.fromkeys(a for a in args if a not in members and self.graph.nodes[a].op != "const"))

    def _made_of_one_value(self, index: int) -> tuple[int, ...]:
        """The nodes between ``index`` and the one value it is made of, if the formula is short enough."""
        best = ()
        for group in self._growing(index, lambda node: True):
            outer = self._externals(group)
            if len(outer) == 1 and len(expression(self.graph, index, {outer[0]: "u"})) <= _LETTERS:
                best = tuple(sorted(group - {index}))
            if len(group) == _OPERATIONS:
                break
        return best

    def _terms(self, index: int) -> tuple[int, ...]:
        """The inner sums of a sum, or products of a product, that only it uses."""
        kind = next((kind for kind in ({"add", "sub"}, {"mul"}) if self.graph.nodes[index].op in kind), set())
        found = ()
        for group in self._growing(
            index, lambda node: self.graph.nodes[node].op in kind and len(self.users[node]) == 1
        ):
            found = tuple(sorted(group - {index}))
            if len(group) + 1 == _TERMS:
                break
        return found

    def _growing(self, index: int, wanted: Callable[[int], bool]) -> Iterator[set[int]]:
        """Groups of nodes that nothing else uses, from the inputs of ``index`` backwards, each one node larger."""
        group, waiting = {index}, [-arg for arg in set(self.graph.nodes[index].args)]
        heapq.heapify(waiting)
        while waiting:  # the last first, as then all that use a node have been looked at
            node = -heapq.heappop(waiting)
            if node not in group and self._absorbable(node, group) and wanted(node):
                group.add(node)
                for arg in self.graph.nodes[node].args:
                    heapq.heappush(waiting, -arg)
                yield group

    def _share(self, index: int, x: int, h: int) -> Block:
        leaves = self.shares.get(index, (index,))
        names = {str(self.graph.nodes[leaf].attr) for leaf in leaves}
        gate = next(iter(names)).partition(".")[2]
        inp, rec = (any(name.startswith(kind) for name in names) for kind in ("inp.", "rec."))
        inputs = [Wire(h)] * rec + [Wire(x)] * inp
        nodes = (*leaves, index) if index in self.shares else (index,)
        return Block(
            "share", nodes, symbols.share(gate, first_state=self.first_state, inp=inp, rec=rec),
            self.names.get(index), self.gates.index(gate), tuple(inputs), words=expression(self.graph, index, {}),
        )  # fmt: skip

    def _constant(self, index: int) -> Block:
        node = self.graph.nodes[index]
        if node.op == "const":
            value = float(str(node.attr))
            return Block("number", (index,), symbols.words(number(value)), words="a number")
        name = str(node.attr).partition(".")[2]
        return Block("parameter", (index,), symbols.symbol(name), words=f"the parameter {name} of each unit")

    def _operation(self, index: int) -> Block:
        group = (*self.folded[index], index)
        outer = self._externals(group)
        gate = self.activations.get(index)
        label, wires = self._label(index, outer)
        written = {arg: self._called(arg, letter) for arg, letter in zip(outer, _letters(outer), strict=True)}
        return Block(
            "operation" if gate is None else "gate", group, label, self.names.get(index),
            None if gate is None else self.gates.index(gate),
            tuple(Wire(self.home[arg], mark) for arg, mark in wires),
            words=expression(self.graph, index, written),
        )  # fmt: skip

    def _called(self, index: int, letter: str) -> str:
        """What the value of another block is called in the words about one."""
        node = self.graph.nodes[index]
        kind, _, name = str(node.attr).partition(".")
        leaf = {"prev": f"{name}[t-1]", "vec": name}.get(kind) if node.op == "leaf" else None
        return self.spoken.get(index) or leaf or (f"preact({name})" if node.op == "leaf" else letter)

    def _label(self, index: int, outer: list[int]) -> tuple[Text, list[tuple[int, str]]]:
        """What stands in the box of an operation, and what enters it with which mark."""
        node, inside = self.graph.nodes[index], self.folded[index]
        if node.op in ("add", "sub", "mul") and self._is_one_sum_or_product(index):
            return self._sum_or_product(index)
        if node.op in _SIGNS and len(outer) == 1 and node.args.count(outer[0]) == 1:
            place = 1 - node.args.index(outer[0])
            beside = self.graph.nodes[node.args[place]]
            if beside.op in ("leaf", "const"):  # a parameter or a number
                before, _, after = _BESIDE_A_NUMBER[node.op, place].partition("{}")
                parts = (
                    symbols.words(before) if before else (),
                    _operand(beside),
                    symbols.words(after) if after else (),
                )
                return sum(parts, ()), [(outer[0], "")]
        if node.op in ops.ROWS and not inside and len(node.args) == len(outer) == 1 and _has_a_name(node):
            return symbols.words(_NAMES.get(node.op, node.op)), [(outer[0], "")]
        if not inside and len(node.args) == 2 == len(outer):
            if node.op == "div":
                return symbols.words("÷"), [(node.args[0], ""), (node.args[1], "÷")]
            if ops.ROWS[node.op].commutes:
                return symbols.words(_NAMES.get(node.op, node.op)), [(arg, "") for arg in node.args]
        letters = _letters(outer)
        text = expression(self.graph, index, dict(zip(outer, letters, strict=True)))
        marks = [""] if len(outer) == 1 else letters
        if node.op == "where":  # brackets that nothing is outside of
            text = text[1:-1]
        return symbols.words(text.replace("-", "−")), list(zip(outer, marks, strict=True))

    def _is_one_sum_or_product(self, index: int) -> bool:
        """Whether nothing but its like is folded into it, so that it is a sign with marked terms."""
        kind = {"mul"} if self.graph.nodes[index].op == "mul" else {"add", "sub"}
        inner = [i for i in self.folded[index] if self.graph.nodes[i].op != "leaf"]
        terms = [arg for i in (index, *inner) for arg in self.graph.nodes[i].args if arg not in inner]
        plain = [arg for arg in terms if self.graph.nodes[arg].op != "const" and arg not in self.folded[index]]
        return (
            all(self.graph.nodes[i].op in kind for i in inner) and len(set(plain)) >= 2 and len(terms) - len(plain) <= 1
        )

    def _sum_or_product(self, index: int) -> tuple[Text, list[tuple[int, str]]]:
        node = self.graph.nodes[index]
        terms: list[tuple[int, str]] = []

        def enter(index: int, sign: str) -> None:
            node = self.graph.nodes[index]
            for place, arg in enumerate(node.args):
                own = _opposite(sign) if node.op == "sub" and place == 1 else sign
                if arg in self.folded[top] and self.graph.nodes[arg].op != "leaf":
                    enter(arg, own)
                else:
                    terms.append((arg, own))

        top = index
        enter(index, "")
        beside = [
            (arg, sign) for arg, sign in terms if arg in self.folded[index] or self.graph.nodes[arg].op == "const"
        ]
        wires = [term for term in terms if term not in beside]
        sign = "×" if node.op == "mul" else "+"
        if not beside:
            return symbols.words("−" if node.op == "sub" and len(wires) == 2 else sign), wires
        arg, minus = beside[0]
        return (*symbols.words(f"{minus or sign} "), *_operand(self.graph.nodes[arg])), wires


def _letters(values: list[int]) -> list[str]:
    return ["u"] if len(values) == 1 else [chr(ord("a") + place) for place in range(len(values))]


def number(value: float) -> str:
    """A constant as it stands in a box."""
    return f"{value:g}".replace("e-0", "e-").replace("-", "−")


def _opposite(sign: str) -> str:
    return "" if sign else "−"


def _operand(node: Node) -> Text:
    if node.op == "leaf":
        return symbols.symbol(str(node.attr).partition(".")[2])
    return symbols.words(number(float(str(node.attr))))


def _has_a_name(node: Node) -> bool:
    """Whether the operation is called something, rather than written with signs around its argument."""
    return node.attr is None and node.op not in ("neg", "logical_not")
