"""A step's equations on paper (`equations`) and in a terminal (`plain`), printed from its graph.

Each value that the author of the cell gave a name has a line, and so has each state. A value without a
name is written where it is used; if that would repeat costly or long work, or nest deeper than anybody reads,
it gets a name of its own.
Gate k's two shares are x_t W_ik + b_ik and h_{t-1} W_hk + b_hk, in the names of ``torch.nn``; h stands for
the first state.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from recollect.graph import ops
from recollect.graph.graph import Graph, Node

# How strongly a text holds together, on the scale of `ops.Op.binds`.
_CONDITIONAL, _SUM, _PRODUCT, _QUOTIENT, _POWER, _ATOM = -1, 0, 1, 2, 3, 4
Text = tuple[str, int]

# An expression without a name that is used more than once is written out up to this weight.
_LIGHT = 8
_SHARE_WEIGHT = 4
# Beyond this weight it gets a name however often it is used: nobody reads longer lines, and readers of LaTeX recurse.
_HEAVY = 48


def equations(graph: Graph) -> list[str]:
    r"""Write a step in LaTeX, one equation per line, without delimiters.

    Args:
        graph: a cell's; its outputs are the states, the first being the one that W_hh multiplies.

    Returns:
        Lines such as ``c_t = f_t \, c_{t-1} + i_t \, g_t``, each after those that it uses.
    """
    return _lines(graph, _LATEX)


def plain(graph: Graph) -> list[str]:
    """Write a step for a terminal, one equation per line.

    Args:
        graph: a cell's; its outputs are the states, the first being the one that W_hh multiplies.

    Returns:
        Lines such as ``c[t] = f · c[t-1] + i · g``, each after those that it uses.
    """
    return _lines(graph, _PLAIN)


def expression(graph: Graph, index: int, symbols: Mapping[int, str]) -> str:
    """Write one node for a terminal, on one line, in terms of others.

    Args:
        graph: a cell's.
        index: the node.
        symbols: what some other nodes are called; what they are made of is then not written.
    """
    wanted, stack = set(), [index]
    while stack:
        each = stack.pop()
        if each not in wanted:
            wanted.add(each)
            stack += () if each in symbols else graph.nodes[each].args
    texts: dict[int, Text] = {}
    for each in sorted(wanted):
        known = each in symbols and each != index
        texts[each] = (symbols[each], _ATOM) if known else _text(graph, graph.nodes[each], texts, symbols, _PLAIN)
    return texts[index][0]


@dataclass(frozen=True)
class _Style:
    """How one notation writes things.

    Attributes:
        state: the name of a state, and how many steps ago.
        variable: the name of another value of this step.
        vector: the name of a per-unit parameter.
        share: the input or previous state, "i" or "h", and a gate.
        number: a constant.
        operation: a node and its arguments' texts, already in brackets where needed.
        binds: op -> how strongly what `operation` writes holds together.
        needs: op -> how strongly each argument has to hold together to stand without brackets.
        bracket: a text in brackets.
    """

    state: Callable[[str, int], str]
    variable: Callable[[str], str]
    vector: Callable[[str], str]
    share: Callable[[str, str, str], str]
    number: Callable[[float], Text]
    operation: Callable[[Node, list[str]], str]
    binds: Mapping[str, int]
    needs: Mapping[str, tuple[int, ...]]
    bracket: Callable[[str], str]


def _lines(graph: Graph, style: _Style) -> list[str]:
    symbols = _symbols(graph, style)
    texts: list[Text] = []
    lines = []
    for index, node in enumerate(graph.nodes):
        text = _text(graph, node, texts, symbols, style)
        if index in symbols:
            lines.append(f"{symbols[index]} = {text[0]}")
            text = symbols[index], _ATOM
        texts.append(text)
    for state, index in graph.outputs:
        symbol = style.state(state, 0)
        if symbols.get(index) != symbol:  # the same value as another state's, or a leaf
            lines.append(f"{symbol} = {texts[index][0]}")
    return lines


def _symbols(graph: Graph, style: _Style) -> dict[int, str]:
    """Which nodes have a line of their own, and what they are called there."""
    symbols: dict[int, str] = {}
    computed = [node.op not in ("leaf", "const") for node in graph.nodes]
    for state, index in graph.outputs:
        if computed[index]:
            symbols.setdefault(index, style.state(state, 0))
    # A variable may be called like x, a state or a parameter and hold something else: then it goes without.
    taken = {"x", *(state for state, _ in graph.outputs)}
    taken |= {leaf.removeprefix("vec.") for leaf in graph.leaves if leaf.startswith("vec.")}
    for name, index in graph.names:
        if computed[index] and name not in taken:
            symbols.setdefault(index, style.variable(name))
    taken |= {name for name, _ in graph.names}
    spare = (f"u_{number}" for number in itertools.count(1) if f"u_{number}" not in taken)

    uses = Counter(arg for node in graph.nodes for arg in node.args)
    weights: list[int] = []
    for index, node in enumerate(graph.nodes):
        weight = _own_weight(node) + sum(weights[arg] for arg in node.args)
        if weight > (_LIGHT if uses[index] > 1 else _HEAVY) and index not in symbols:
            symbols[index] = style.variable(next(spare))
        weights.append(1 if index in symbols else weight)
    return symbols


def _own_weight(node: Node) -> int:
    if node.op == "leaf":
        return _SHARE_WEIGHT if str(node.attr).startswith(("inp.", "rec.")) else 1
    return _LIGHT if node.op in ops.ROWS and ops.ROWS[node.op].costly else 1


def _text(
    graph: Graph, node: Node, texts: Sequence[Text] | Mapping[int, Text], symbols: Mapping[int, str], style: _Style
) -> Text:
    if node.op == "const":
        return style.number(float(str(node.attr)))
    if node.op == "leaf":
        kind, _, name = str(node.attr).partition(".")
        if kind == "prev":
            return style.state(name, 1), _ATOM
        if kind == "vec":
            return style.vector(name), _ATOM
        source = "x" if kind == "inp" else graph.outputs[0][0]
        return style.share(source, "i" if kind == "inp" else "h", name), _SUM
    order = _reading_order(graph, node, symbols) if ops.ROWS[node.op].commutes else node.args
    needs = style.needs.get(node.op, itertools.repeat(_CONDITIONAL))
    args = []
    for (text, strength), needed in zip((texts[i] for i in order), needs, strict=False):
        # Two signs in a row, and a second factor that would read as one number with the first.
        misread = args and ((node.op in ("add", "sub") and text[0] == "-") or (node.op == "mul" and text[0].isdigit()))
        args.append(style.bracket(text) if strength < needed or misread else text)
    return style.operation(node, args), style.binds.get(node.op, _ATOM)


def _reading_order(graph: Graph, node: Node, symbols: Mapping[int, str]) -> list[int]:
    """A graph sorts the arguments of + and · by their place in it; paper has habits.

    In sums the gates' shares come first and numbers last; in products numbers, parameters and variables
    come before states and brackets.
    """

    def rank(index: int) -> int:
        op, kind = graph.nodes[index].op, str(graph.nodes[index].attr).partition(".")[0]
        if node.op == "mul":
            if index in symbols:
                return 2
            return 0 if op == "const" else {"vec": 1, "prev": 3}.get(kind, 4)
        return 2 if op == "const" else 0 if kind in ("inp", "rec") else 1

    return sorted(node.args, key=rank)


_NEEDS = {
    "add": (_SUM, _SUM),
    "sub": (_SUM, _PRODUCT),
    "mul": (_PRODUCT, _PRODUCT),
    "neg": (_PRODUCT,),
    "power": (_ATOM,),
    "pow": (_ATOM, _CONDITIONAL),
    **{name: (_SUM, _SUM) for name, row in ops.ROWS.items() if row.boolean},
}

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)


def _latex_word(name: str) -> str:
    if len(name) == 1 or name.isdigit():
        return name
    return f"\\{name}" if name in _GREEK.split() else rf"\mathrm{{{name}}}".replace("_", r"\_")


def _latex_symbol(name: str, *below: str) -> str:
    """``p_i`` is p with the index i; ``below`` adds indices."""
    base, *indices = name.strip("_").split("_", 1)
    indices = [*(_latex_word(index) for index in indices), *below]
    subscript = ",".join(indices)
    return _latex_word(base) + (f"_{{{subscript}}}" if len(subscript) > 1 else f"_{subscript}" if subscript else "")


def _latex_state(name: str, ago: int) -> str:
    return _latex_symbol(name, f"t-{ago}" if ago else "t")


def _latex_share(source: str, kind: str, gate: str) -> str:
    operand = "x_t" if kind == "i" else _latex_state(source, 1)
    index = f"{{{kind}{_latex_word(gate)}}}"
    return f"{operand} W_{index} + b_{index}"


def _latex_number(value: float) -> Text:
    text = f"{value:g}"
    digits, e, exponent = text.partition("e")
    if e:
        power = f"10^{{{int(exponent)}}}"
        text = power if digits == "1" else f"-{power}" if digits == "-1" else rf"{digits} \times {power}"
    text = text.replace("inf", r"\infty")
    return text, _SUM if text.startswith("-") else _POWER if text.startswith("10^") else _PRODUCT if e else _ATOM


def _latex_operation(node: Node, args: list[str]) -> str:
    extra = () if node.attr is None else (node.attr,)
    return ops.ROWS[node.op].latex(*args, *extra)


_LATEX = _Style(
    state=_latex_state,
    variable=lambda name: _latex_symbol(name, "t"),
    vector=_latex_symbol,
    share=_latex_share,
    number=_latex_number,
    operation=_latex_operation,
    binds={**{name: row.binds for name, row in ops.ROWS.items()}, "where": _CONDITIONAL},
    needs={**_NEEDS, "where": (_CONDITIONAL, _SUM, _SUM)},
    bracket=lambda text: rf"\left({text}\right)",
)


_INFIX = {"add": "+", "sub": "-", "mul": "·", "div": "/", "lt": "<", "le": "≤", "gt": ">", "ge": "≥", "eq": "=",
          "ne": "≠", "logical_and": "and", "logical_or": "or"}  # fmt: skip
_FUNCTIONS = {"sigmoid": "σ", "log": "ln", "minimum": "min", "maximum": "max", "detach": "sg"}


def _plain_state(name: str, ago: int) -> str:
    return f"{name}[t-{ago}]" if ago else f"{name}[t]"


def _plain_share(source: str, kind: str, gate: str) -> str:
    operand = "x[t]" if kind == "i" else _plain_state(source, 1)
    return f"{operand} · W_{kind}{gate} + b_{kind}{gate}"


def _plain_number(value: float) -> Text:
    return f"{value:g}", _SUM if value < 0 else _ATOM


def _plain_operation(node: Node, args: list[str]) -> str:
    if node.op in _INFIX:
        return f" {_INFIX[node.op]} ".join(args)
    if node.op == "where":
        return f"({args[1]} if {args[0]} else {args[2]})"
    if node.op == "neg":
        return f"-{args[0]}"
    if node.op == "pow":
        return f"{args[0]}^{args[1]}"
    if node.op == "logical_not":
        return f"not {args[0]}"
    if node.op == "power":
        return f"{args[0]}^{node.attr:g}" if float(str(node.attr)) >= 0 else f"{args[0]}^({node.attr:g})"
    if node.attr is not None:
        args = [*args, f"{node.attr:g}"]
    return f"{_FUNCTIONS.get(node.op, node.op)}({', '.join(args)})"


_PLAIN = _Style(
    state=_plain_state,
    variable=str,
    vector=str,
    share=_plain_share,
    number=_plain_number,
    operation=_plain_operation,
    binds={**{name: row.binds for name, row in ops.ROWS.items()}, "div": _PRODUCT, "exp": _ATOM},
    # On one line a quotient is no fraction: its parts need brackets as a product's do.
    needs={**_NEEDS, "div": (_PRODUCT, _QUOTIENT), "pow": (_ATOM, _ATOM)},
    bracket=lambda text: f"({text})",
)
