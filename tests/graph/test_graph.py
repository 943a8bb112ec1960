"""A graph as data: sharing, folding, the JSON form and its hostile relatives, and the key."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from random_graphs import LEAVES, graphs
from recollect import cells
from recollect.errors import GraphError
from recollect.graph.derivatives import vjp
from recollect.graph.graph import MAX_NODES, Builder, Graph, Node
from recollect.graph.trace import TorchTarget


class TestJson:
    @given(graphs())
    @settings(max_examples=100, deadline=None)
    def test_round_trip_is_identity(self, graph):
        again = Graph.from_json(graph.to_json())
        assert again == graph
        assert again.to_json() == graph.to_json()
        assert again.key == graph.key

    @pytest.mark.parametrize("cell", [*map(cells.by_name, cells.__all__)], ids=lambda cell: cell.name)
    def test_round_trip_of_the_cells(self, cell):
        assert Graph.from_json(cell.graph.to_json()) == cell.graph

    def test_is_strict_json(self):
        builder = Builder()
        graph = builder.build({"h": builder.apply("minimum", builder.leaf("inp.a"), math.inf)})

        def refuse(text):
            raise AssertionError(text)

        json.loads(graph.to_json(), parse_constant=refuse)
        assert Graph.from_json(graph.to_json()) == graph


GOOD = {
    "format": 1,
    "nodes": [
        ["leaf", [], "inp.a"],
        ["const", [], [2.0]],
        ["mul", [0, 1], None],
        ["power", [2], [1.5]],
        ["gt", [0, 1], None],
        ["where", [4, 2, 3], None],
    ],
    "outputs": [["h", 5]],
    "names": [["y", 2]],
}


def altered(**changes):
    return json.dumps({**GOOD, **changes})


def with_node(index, row):
    return altered(nodes=[*GOOD["nodes"][:index], row, *GOOD["nodes"][index + 1 :]])


HOSTILE = {
    "empty": "",
    "not json": "{",
    "a number": "1",
    "null": "null",
    "a list": "[]",
    "nothing in it": "{}",
    "deep": "[" * 100_000,
    "deep and closed": "[" * 50_000 + "]" * 50_000,
    "deep inside": altered(nodes=[["leaf", [], "inp.a"]])[:-1] + ', "x": ' + "[" * 100_000,
    "another format": altered(format=2),
    "format as true": altered(format=True),
    "format as text": altered(format="1"),
    "no outputs key": json.dumps({key: GOOD[key] for key in GOOD if key != "outputs"}),
    "nodes is a number": altered(nodes=3),
    "nodes is null": altered(nodes=None),
    "nodes is text": altered(nodes="abc"),
    "nodes is an object": altered(nodes={"leaf": 1}),
    "giant": altered(nodes=[["leaf", [], "inp.a"]] * (MAX_NODES + 1)),
    "short row": with_node(0, ["leaf", []]),
    "long row": with_node(0, ["leaf", [], "inp.a", 1]),
    "row is text": with_node(0, "leaf"),
    "row is null": with_node(0, None),
    "unknown operation": with_node(2, ["system", [0, 1], None]),
    "operation is a number": with_node(2, [1, [0, 1], None]),
    "operation is a list": with_node(2, [["mul"], [0, 1], None]),
    "dunder": with_node(2, ["__class__", [0, 1], None]),
    "forward reference": with_node(2, ["mul", [0, 3], None]),
    "itself": with_node(2, ["mul", [0, 2], None]),
    "negative reference": with_node(2, ["mul", [0, -1], None]),
    "reference as true": with_node(2, ["mul", [0, True], None]),
    "reference as float": with_node(2, ["mul", [0, 1.0], None]),
    "reference as text": with_node(2, ["mul", [0, "1"], None]),
    "arguments as text": with_node(2, ["mul", "01", None]),
    "arguments as object": with_node(2, ["mul", {"0": 0, "1": 1}, None]),
    "too few arguments": with_node(2, ["mul", [0], None]),
    "too many arguments": with_node(2, ["mul", [0, 1, 1], None]),
    "leaf with arguments": with_node(1, ["leaf", [0], "rec.a"]),
    "leaf without a kind": with_node(0, ["leaf", [], "a"]),
    "leaf with two dots": with_node(0, ["leaf", [], "inp.a.b"]),
    "leaf with an escape": with_node(0, ["leaf", [], "inp.\x1b[2J"]),
    "leaf is a number": with_node(0, ["leaf", [], [1.0]]),
    "leaf is null": with_node(0, ["leaf", [], None]),
    "leaf twice": with_node(1, ["leaf", [], "inp.a"]),
    "constant is text": with_node(1, ["const", [], "2.0"]),
    "constant without a list": with_node(1, ["const", [], 2.0]),
    "constant is true": with_node(1, ["const", [], [True]]),
    "constant is null": with_node(1, ["const", [], [None]]),
    "constant is a list": with_node(1, ["const", [], [[2.0]]]),
    "constant is nan": with_node(1, ["const", [], ["nan"]]),
    "constant is NaN": with_node(1, ["const", [], [math.nan]]),
    "constant is Infinity": with_node(1, ["const", [], [math.inf]]),
    "constant is 1e999": with_node(1, ["const", [], [2.0]]).replace("2.0", "1e999"),
    "constant is any word": with_node(1, ["const", [], ["1.0"]]),
    "constant is a giant integer": with_node(1, ["const", [], [10**400]]),
    "constant with too many digits": with_node(1, ["const", [], [2.0]]).replace("2.0", "1" * 5000),
    "two constants": with_node(1, ["const", [], [1.0, 2.0]]),
    "no constant": with_node(1, ["const", [], []]),
    "number where none belongs": with_node(2, ["mul", [0, 1], [1.0]]),
    "power without a number": with_node(3, ["power", [2], None]),
    "power by a name": with_node(3, ["power", [2], "x"]),
    "condition used as a number": with_node(5, ["where", [4, 4, 3], None]),
    "number used as a condition": with_node(5, ["where", [2, 2, 3], None]),
    "condition as an output": altered(outputs=[["h", 4]]),
    "output beyond": altered(outputs=[["h", 6]]),
    "output negative": altered(outputs=[["h", -1]]),
    "output as true": altered(outputs=[["h", True]]),
    "output without a name": altered(outputs=[[None, 5]]),
    "output twice": altered(outputs=[["h", 5], ["h", 2]]),
    "outputs is null": altered(outputs=None),
    "name beyond": altered(names=[["y", 99]]),
    "name twice": altered(names=[["y", 2], ["y", 3]]),
    "name with an escape": altered(names=[["\x1b[2J", 2]]),
    "name is a list": altered(names=[[["y"], 2]]),
    "bytes": b"\xff\xfe",
    "no text at all": None,
}


class TestHostileJson:
    def test_the_unaltered_graph_is_read(self):
        assert Graph.from_json(altered()).leaves == ("inp.a",)

    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
    def test_is_refused_with_our_error(self, text):
        with pytest.raises(GraphError):
            Graph.from_json(text)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["leaf", "const", "mul", "nan"]),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(list(GOOD)), inner, max_size=4),
            max_leaves=12,
        ),
        st.sampled_from(list(GOOD)),
    )
    @settings(max_examples=200, deadline=None)
    def test_no_other_error_comes_out(self, junk, key):
        for text in (json.dumps(junk), altered(**{key: junk}), altered(nodes=[*GOOD["nodes"], junk])):
            try:
                graph = Graph.from_json(text)
            except GraphError:
                continue
            assert Graph.from_json(graph.to_json()) == graph

    def test_long_chains_are_read_without_recursion(self):
        chain = [["leaf", [], "inp.a"], *(["tanh", [i], None] for i in range(MAX_NODES - 1))]
        graph = Graph.from_json(altered(nodes=chain, outputs=[["h", MAX_NODES - 1]], names=[]))
        assert graph.evaluate({"inp.a": torch.ones(1)}, TorchTarget())["h"].shape == (1,)

    def test_an_unknown_operation_is_named_with_what_there_is(self):
        with pytest.raises(GraphError, match=r"(?s)given: system; expected: .*tanh"):
            Graph.from_json(HOSTILE["unknown operation"])


class TestBuilder:
    def test_equal_expressions_are_one_node(self):
        builder = Builder()
        x, y = builder.leaf("inp.a"), builder.leaf("rec.a")
        first, second = builder.apply("tanh", x + y), builder.apply("tanh", y + x)
        assert first.index == second.index
        assert (x - y).index != (y - x).index
        assert builder.apply("power", x, attr=1.5).index != builder.apply("power", x, attr=2.5).index

    def test_zeros_of_unlike_sign_stay_apart(self):
        builder = Builder()
        assert builder.const(0.0).index != builder.const(-0.0).index

    def test_what_nothing_uses_is_dropped(self):
        builder = Builder()
        x = builder.leaf("inp.a")
        unused = builder.apply("exp", builder.leaf("rec.a"))
        graph = builder.build({"h": builder.apply("tanh", x)}, {"x": x, "unused": unused})
        assert [node.op for node in graph.nodes] == ["leaf", "tanh"]
        assert graph.leaves == ("inp.a",)
        assert graph.names == (("x", 0),)

    def test_constants_fold_in_double_precision(self):
        builder = Builder()
        assert (builder.const(0.1) * 3.0 + 1.0).node == Node("const", (), 0.1 * 3.0 + 1.0)
        assert (builder.const(1.0) / 3.0).node.attr == 1.0 / 3.0
        assert (-builder.const(2.0)).node.attr == -2.0

    def test_what_has_no_number_is_left_to_the_machine(self):
        builder = Builder()
        assert (builder.const(1.0) / 0.0).node.op == "div"
        assert (builder.const(math.inf) - math.inf).node.op == "sub"

    def test_identities_disappear(self):
        builder = Builder()
        x = builder.leaf("inp.a")
        same = [x + -0.0, -0.0 + x, x - 0.0, x * 1.0, 1.0 * x, x / 1.0, builder.apply("neg", -x)]
        assert {expr.index for expr in same} == {x.index}
        assert (x * -1.0).index == (-x).index

    def test_only_exact_rewrites(self):
        """x * 0 is NaN for an infinite x, x - x and x / x too: none of these is a constant. -0 + 0 is 0, not x."""
        builder = Builder()
        x = builder.leaf("inp.a")
        assert [e.node.op for e in (x + 0.0, 0.0 + x, x - -0.0)] == ["add", "add", "sub"]
        mask = builder.apply("gt", x, 0.0)
        assert [e.node.op for e in (x * 0.0, x - x, x / x, 0.0 / x)] == ["mul", "sub", "div", "div"]
        # So is a mask times a value: torch makes it NaN where 0 meets an infinity.
        graph = builder.build({"h": builder.apply("mul", mask, 1.0 / x)})
        assert math.isnan(float(graph.evaluate({"inp.a": torch.tensor(-0.0)}, TorchTarget())["h"]))

    def test_nan_is_no_constant(self):
        with pytest.raises(GraphError, match="not a number"):
            Builder().const(math.nan)

    @given(
        graphs(
            rows=("add", "sub", "mul", "neg", "where", "lt", "minimum"), numbers=st.sampled_from([0.0, 1.0, -1.0, 2.5])
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_importing_a_graph_changes_nothing(self, graph):
        builder = Builder()
        copies = builder.import_graph(graph)
        outputs, names = ({name: copies[i] for name, i in pairs} for pairs in (graph.outputs, graph.names))
        assert builder.build(outputs, names) == graph


class TestVjp:
    def test_gradients_of_every_use_add_up(self):
        builder = Builder()
        x, g = builder.leaf("inp.a"), builder.leaf("prev.g")
        square = x * x
        (grad,) = vjp([(square, g), (square, g), (x, g)], [x])
        value = builder.build({"d": grad}).evaluate({"inp.a": 3.0, "prev.g": 1.0}, TorchTarget())["d"]
        assert value == 2 * (2 * 3.0) + 1

    def test_none_where_nothing_depends(self):
        builder = Builder()
        x, y = builder.leaf("inp.a"), builder.leaf("rec.a")
        detached = builder.apply("detach", y)
        assert vjp([(x * detached, builder.const(1.0))], [x, y])[1] is None

    def test_what_is_asked_for_is_not_entered(self):
        builder = Builder()
        x = builder.leaf("inp.a")
        middle = builder.apply("tanh", x)
        grads = vjp([(middle * 2.0, builder.const(1.0))], [middle, x])
        assert grads[0].node.attr == 2.0
        assert grads[1] is None


class TestKey:
    @given(graphs(), graphs())
    @settings(max_examples=60, deadline=None)
    def test_equal_for_equal_content_only(self, first, second):
        written = [repr((graph.nodes, graph.outputs)) for graph in (first, second)]
        assert (first.key == second.key) == (written[0] == written[1])
        assert (first == second) == (repr(first) == repr(second))
        assert first != second or hash(first) == hash(second)

    def test_ignores_what_the_author_called_things(self):
        graph = cells.lstm.graph
        assert graph.names
        assert replace(graph, names=()).key == graph.key

    def test_tells_zeros_and_attributes_apart(self):
        keys = set()
        for number in (0.0, -0.0, 1.5, math.inf):
            builder = Builder()
            keys.add(builder.build({"h": builder.apply("maximum", builder.leaf("inp.a"), number)}).key)
        assert len(keys) == 4

    def test_no_two_cells_have_one(self):
        keys = {cells.by_name(name).graph.key for name in cells.__all__}
        assert len(keys) == len(cells.__all__)


class TestTorchTarget:
    @given(graphs(numbers=st.sampled_from([0.25, 1.5])))
    @settings(max_examples=60, deadline=None)
    def test_evaluates_constants_alone_too(self, graph):
        """A step may apply any operation to numbers, as in ``torch.exp(torch.tensor(0.5)) * x``."""
        found = graph.evaluate(dict.fromkeys(LEAVES, 0.75), TorchTarget())
        expected = graph.evaluate(dict.fromkeys(LEAVES, torch.full((2,), 0.75, dtype=torch.float64)), TorchTarget())
        for name, value in found.items():
            wanted = torch.as_tensor(expected[name], dtype=torch.float64).expand(2)
            torch.testing.assert_close(torch.as_tensor(value, dtype=torch.float64).expand(2), wanted, equal_nan=True)
