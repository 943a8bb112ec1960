"""The largest graphs that a file may hold: whatever walks one neither recurses nor takes long, and larger ones are
refused before anything walks them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

import recollect
from recollect import cells
from recollect.engine.plan import make_plan
from recollect.engine.waves import cut
from recollect.errors import CellError, GraphError
from recollect.graph import ops
from recollect.graph.declaration import MAX_NAMES, MAX_WORK, check_graph, declared_names
from recollect.graph.derivatives import node_gradients, partials
from recollect.graph.drawing import draw_step, draw_unrolled
from recollect.graph.gates import activations
from recollect.graph.graph import MAX_NODES, MAX_TEXT, Graph, Node
from recollect.graph.latex import equations, plain
from recollect.graph.mathml import mathml
from recollect.graph.trace import TorchTarget

START = (Node("leaf", (), "inp.a"), Node("leaf", (), "rec.a"), Node("add", (0, 1)), Node("gt", (0, 1)))
NUMBER, CONDITION = 2, 3


def products(length):
    """A chain of cheap operations, each of the one before it and of one value more."""
    rows = [Node(("mul", "sub", "add")[place % 3], (NUMBER + 2 + place - 1 if place else NUMBER, NUMBER))
            for place in range(length - len(START))]  # fmt: skip
    return Graph((*START, *rows), (("h", length - 1),))


def every_row():
    """A chain through every row, again and again, up to the work that a cell may be."""
    nodes, here, condition = list(START), NUMBER, CONDITION
    graph = Graph(tuple(nodes), (("h", here),))
    while graph.work <= MAX_WORK - 30:
        for row in ops.ROWS.values():
            args = [condition if place in row.boolean_args else here for place in range(row.arity)]
            if row.arity > 1 and not row.boolean:
                args[-1] = NUMBER
            nodes.append(Node(row.name, tuple(args), 1.5 if row.takes_number else None))
            here, condition = (here, len(nodes) - 1) if row.boolean else (len(nodes) - 1, condition)
            graph = Graph(tuple(nodes), (("h", here),))
            if graph.work > MAX_WORK - 30:
                break
    return graph


GRAPHS = {"products": products(MAX_NODES), "every row": every_row()}
assert {node.op for node in GRAPHS["every row"].nodes} >= set(ops.ROWS)

WALKS = {
    "json": lambda graph: Graph.from_json(graph.to_json()),
    "declaration": lambda graph: check_graph("large", ("a",), ("h",), (), graph),
    "values": lambda graph: graph.evaluate({"inp.a": torch.ones(1), "rec.a": torch.ones(1)}, TorchTarget()),
    "plan": lambda graph: make_plan(graph, ("a",), ("h",), ()),
    "waves": lambda graph: cut(graph),
    "partials": lambda graph: partials(graph),
    "node gradients": lambda graph: node_gradients(graph, (NUMBER,)),
    "gates": lambda graph: activations(graph, ("a",)),
    "equations": lambda graph: equations(graph),
    "plain": lambda graph: plain(graph),
    "MathML": lambda graph: mathml(graph),
    "unrolled": lambda graph: draw_unrolled(graph),
    "cell": lambda graph: cells.Cell.from_graph("large", "a", "h", "", graph.to_json()),
}


@pytest.fixture
def shallow():
    """A stack that has no room for one frame more for each node."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(500)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())
@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS.keys())
def test_nothing_that_walks_a_graph_recurses(walk, graph, shallow):
    walk(graph)


def test_a_picture_is_drawn_or_refused(shallow):
    assert draw_step(GRAPHS["every row"]).startswith("<svg")
    with pytest.raises(GraphError, match="too large to be drawn"):
        draw_step(GRAPHS["products"])


def test_a_step_of_thousands_of_operations_is_traced():
    @recollect.cell(gates="a", states="h")
    def long(inp, rec, prev):
        h = inp.a + rec.a
        for _ in range(900):
            h = h * prev.h + 0.5
        return h

    assert len(long.graph.nodes) > 1_800
    assert Graph.from_json(long.graph.to_json()) == long.graph


class TestEquations:
    """However long a step is, each of its lines can be read, and says what it did."""

    def test_no_line_grows_with_the_graph(self):
        for graph in GRAPHS.values():
            assert max(map(len, plain(graph))) < 400

    def test_names_are_given_where_lines_would_grow(self):
        nodes = [Node("leaf", (), "inp.a"), *(Node("tanh", (place,)) for place in range(30))]
        lines = plain(Graph(tuple(nodes), (("h", 30),)))
        assert [line.count("tanh") for line in lines[:-1]] == [6] * (len(lines) - 1)
        assert sum(line.count("tanh") for line in lines) == 30


class TestLimits:
    def test_nodes(self):
        at, beyond = products(MAX_NODES), products(MAX_NODES + 1)
        assert Graph.from_json(at.to_json()) == at
        with pytest.raises(GraphError, match=f"{MAX_NODES + 1} nodes"):
            Graph.from_json(beyond.to_json())

    def test_text(self):
        text = products(9).to_json()
        assert Graph.from_json(text + " " * (MAX_TEXT - len(text))) == products(9)
        with pytest.raises(GraphError, match=f"{MAX_TEXT + 1} characters"):
            Graph.from_json(text + " " * (MAX_TEXT - len(text) + 1))

    def test_work(self):
        def of_work(work):
            costly, cheap = divmod(work - len(START), 25)
            rows = ["tanh"] * costly + ["neg"] * cheap
            nodes = [Node(op, (NUMBER + 2 + place - 1 if place else NUMBER,)) for place, op in enumerate(rows)]
            return Graph((*START, *nodes), (("h", len(START) + len(rows) - 1),))

        assert of_work(MAX_WORK).work == MAX_WORK
        check_graph("large", ("a",), ("h",), (), of_work(MAX_WORK))
        with pytest.raises(CellError, match=f"too large to be compiled.*about {MAX_WORK + 1} instructions"):
            check_graph("large", ("a",), ("h",), (), of_work(MAX_WORK + 1))
        # What may be declared can be read from a file again, so that is refused by the same measure.
        with pytest.raises(CellError, match=f"in {MAX_NODES + 1} operations"):
            check_graph("large", ("a",), ("h",), (), products(MAX_NODES + 1))

    @pytest.mark.parametrize("kind", range(3))
    def test_names(self, kind):
        texts = ["a", "h", "v"]
        texts[kind] = " ".join(f"n{place}" for place in range(MAX_NAMES))
        assert len(declared_names("large", *texts)[kind]) == MAX_NAMES
        texts[kind] += " more"
        with pytest.raises(CellError, match=f"{MAX_NAMES + 1} names"):
            declared_names("large", *texts)
        texts[kind] = " ".join(f"n{place}" for place in range(200_000))  # which once took minutes to count
        with pytest.raises(CellError, match="200000 names"):
            declared_names("large", *texts)

    @pytest.mark.parametrize("name", cells.__all__)
    def test_our_cells_have_room(self, name):
        cell = cells.by_name(name)
        assert cell.graph.work < MAX_WORK / 10
        assert len(cell.graph.nodes) < MAX_NODES / 10
        assert max(map(len, (cell.gates, cell.states, cell.vectors))) < MAX_NAMES / 10


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000, '["a", "b"]', "[1, 2, 3, 4, 5]", None, 3])
def test_what_is_no_text_of_a_cell_is_our_error(text):
    with pytest.raises((CellError, GraphError)):
        cells.Cell.from_text(text)


class TestLookAlikes:
    """Python reads identifiers in their normal form, NFKC: ``ﬁ`` is ``fi`` in a step, so it is in a declaration."""

    def test_one_name_in_two_spellings_is_twice_the_same(self):
        with pytest.raises(CellError, match="'fi' twice"):
            declared_names("cell", "ﬁ fi", "h", "")

    def test_a_name_is_what_python_reads(self):
        @recollect.cell(gates="ﬁ", states="𝐡", vectors="ｖ")
        def plain_names(inp, rec, prev, vec):
            return torch.tanh(inp.ﬁ + rec.fi) * vec.ｖ + prev.𝐡

        assert (plain_names.gates, plain_names.states, plain_names.vectors) == (("fi",), ("h",), ("v",))

    def test_a_keyword_in_another_script_is_one(self):
        with pytest.raises(CellError, match="cannot be a name"):
            declared_names("cell", "ｉｆ", "h", "")

    @pytest.mark.parametrize("place", ["leaf", "name"])
    def test_no_graph_has_another_spelling(self, place):
        body = json.loads(replace(products(9), names=(("fi", 2),)).to_json())
        if place == "leaf":
            body["nodes"][0][2] = "inp.ﬁ"
        else:
            body["names"][0][0] = "ﬁ"
        with pytest.raises(GraphError):
            Graph.from_json(json.dumps(body))
