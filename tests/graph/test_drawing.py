"""Drawings: all of the graph is in them once, lines end at what they join and keep clear of all else."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

import recollect
from random_graphs import graphs
from recollect import cells
from recollect.errors import GraphError
from recollect.graph.drawing import Reading, draw_step, draw_unrolled, style_sheet
from recollect.graph.drawing.blocks import blocks
from recollect.graph.drawing.layers import arrange, crossings, main_lines
from recollect.graph.drawing.layout import MOST_BLOCKS, NAME, exits, has_name, lay_out
from recollect.graph.drawing.levels import levels
from recollect.graph.drawing.readings import binned, room, written
from recollect.graph.drawing.symbols import plain, share, symbol
from recollect.graph.graph import Builder, Graph


@recollect.cell(gates="i f g o e z", states="h c d n", vectors="tau p_i p_f p_o")
def large(inp, rec, prev, vec):
    """More than forty operations, of all kinds."""
    i = torch.sigmoid(inp.i + rec.i + vec.p_i * prev.c)
    f = torch.sigmoid(inp.f + rec.f + vec.p_f * prev.c)
    e = F.softplus(inp.e + rec.e)
    z = torch.sigmoid(inp.z + rec.z)
    g = F.gelu(inp.g + z * rec.g)
    decay = torch.exp(-e * F.softplus(vec.tau))
    d = decay * prev.d + (1 - decay) * g
    c = torch.clamp(f * prev.c + i * g + 0.1 * d, -10, 10)
    n = torch.maximum(prev.n * f, torch.abs(c))
    o = torch.sigmoid(inp.o + rec.o + vec.p_o * c)
    mixed = torch.lerp(torch.tanh(c), F.silu(d), z)
    h = o * mixed / (1 + n) + torch.where(n > 3, 0.0, prev.h) * (1 - z)
    return h, c, d, n


@recollect.cell(gates="a b", states="h c", vectors="tau")
def folding(inp, rec, prev, vec):
    total = inp.a + rec.a - prev.h - vec.tau + (inp.b - rec.b)
    return torch.tanh(total) * 0.5, -F.softplus(-prev.c) / (prev.c * prev.c + 1e-8)


ALL = [*map(cells.by_name, cells.__all__), large, folding]
each_cell = pytest.mark.parametrize("cell", ALL, ids=lambda cell: cell.name)


def check_blocks(graph):
    """Every node is drawn once, numbers where they are states, and every wire is a use of one by another."""
    found = blocks(graph)
    drawn = Counter(node for block in found for node in block.nodes)
    outputs = {index for _, index in graph.outputs}
    expected = {i for i, node in enumerate(graph.nodes) if node.op != "const" or i in outputs}
    assert drawn == Counter(dict.fromkeys(expected, 1))
    for number, block in enumerate(found):
        assert all(wire.source < number for wire in block.inputs)
        inside = set(block.nodes)
        used = Counter(arg for i in inside for arg in graph.nodes[i].args if arg not in inside)
        used = {arg for arg in used if graph.nodes[arg].op != "const"}
        sources = (
            {found[wire.source].nodes[-1] for wire in block.inputs} if block.kind not in ("share", "state") else set()
        )
        if block.kind == "share":
            kinds = {str(graph.nodes[i].attr)[:4] for i in inside}
            assert [found[wire.source].kind for wire in block.inputs] == (
                ["previous"] * ("rec." in kinds) + ["input"] * ("inp." in kinds)
            )
        elif block.kind == "state":
            assert found[block.inputs[0].source].nodes[-1] == dict(graph.outputs)[block.state]
        else:
            assert sources == used
    return found


def rectangle(layout, number, name=False):
    box = layout.boxes[number]
    named = name and has_name(box.block, exits([each.block for each in layout.boxes]), number)
    up = box.height / 2 + (NAME if named else 0)
    return box.x - box.width / 2, box.y - up, box.x + box.width / 2, box.y + box.height / 2


def path_of(line):
    """Points along a line, as it is drawn."""
    points = [line.points[0]]
    for place, ((x, y), (to_x, to_y)) in enumerate(itertools.pairwise(line.points)):
        curved = place % 2 == 1 and not line.square
        for step in range(1, 21):
            t = step / 20
            # A cubic whose two middle points lie half way across, level with its ends.
            across = 1.5 * t * (1 - t) + t**3 if curved else t
            rise = 3 * t**2 * (1 - t) + t**3 if curved else t
            points.append((x + (to_x - x) * across, y + (to_y - y) * rise))
    return points


def check_layout(graph, below=lambda block: 0.0):
    layout = lay_out(graph, below)
    left, top, right, bottom = layout.frame
    numbers = range(len(layout.boxes))
    for one, other in itertools.combinations(numbers, 2):
        a, b = (
            (left, top, right, bottom + below(layout.boxes[number].block))
            for number in (one, other)
            for left, top, right, bottom in [rectangle(layout, number, name=True)]
        )
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one, other)
    for number in numbers:
        box, kind = rectangle(layout, number, name=True), layout.boxes[number].block.kind
        if kind in ("previous", "state"):
            assert box[2] < left or box[0] > right
        elif kind != "input":
            assert left < box[0] < box[2] < right
            assert top < box[1] < box[3] < bottom
        assert 0 <= box[0] < box[2] <= layout.width
        assert 0 <= box[1] < box[3] <= layout.height
    wires = Counter((wire.source, n) for n, box in enumerate(layout.boxes) for wire in box.block.inputs)
    assert Counter((line.source, line.target) for line in layout.lines) == wires
    for line in layout.lines:
        box, target = rectangle(layout, line.source), layout.boxes[line.target]
        x, y = line.points[0]
        if layout.boxes[line.source].block.kind == "input":
            assert box[0] < x < box[2]
            assert y == box[1]
        else:
            assert (x, y) == (pytest.approx(box[2]), pytest.approx(layout.boxes[line.source].y))
        x, y = line.points[-1]
        if target.block.round:
            assert math.hypot(x - target.x, y - target.y) == pytest.approx(target.width / 2, abs=0.1)
        else:
            edge = rectangle(layout, line.target)
            assert x == pytest.approx(edge[0])
            assert edge[1] < y < edge[3]
        points = path_of(line)
        assert all(b[0] >= a[0] - 1e-6 for a, b in itertools.pairwise(points)), "time goes from left to right"
        for number in set(numbers) - {line.source, line.target}:
            box = rectangle(layout, number)
            hit = [p for p in points if box[0] + 1 < p[0] < box[2] - 1 and box[1] + 1 < p[1] < box[3] - 1]
            assert not hit, (line, layout.boxes[number])
    return layout


def check_svg(graph, name="cell"):
    readings = {str(i): Reading([0.5, -2.0, math.nan]) for i in range(len(graph.nodes))}
    readings |= {f"{kind}{state}": Reading([1.0], 0.25) for state, _ in graph.outputs for kind in ("", "prev.")}
    found = blocks(graph)
    for svg in (draw_step(graph, name), draw_step(graph, name, loops=True), draw_step(graph, name, readings=readings)):
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert name in root.get("aria-label")
        drawn = [each.get("data-block") for each in root.iter("g")]
        assert drawn == [str(number) for number in range(len(found))]
        ends = Counter(
            (each.get("data-from"), each.get("data-to")) for each in root.iter("path") if each.get("data-to")
        )
        wires = Counter((str(wire.source), str(n)) for n, block in enumerate(found) for wire in block.inputs)
        assert ends == wires
        assert all(each.findtext("title") for each in root.iter("g"))
        drawn = {each.get(key) for each in root.iter() for key in ("d", "x", "y", "cx", "cy", "width", "height")}
        assert not any("nan" in each or "inf" in each for each in drawn - {None})
    ET.fromstring(draw_unrolled(graph, name))


class TestEveryCell:
    @each_cell
    def test_all_of_the_graph_is_drawn_once(self, cell):
        check_blocks(cell.graph)

    @each_cell
    def test_boxes_and_lines_keep_clear_of_each_other(self, cell):
        check_layout(cell.graph)
        check_layout(cell.graph, below=room)

    @each_cell
    def test_the_picture_is_xml_and_says_what_it_shows(self, cell):
        check_svg(cell.graph, cell.name)

    @each_cell
    def test_all_colours_have_a_style(self, cell):
        svg = ET.fromstring(draw_step(cell.graph, loops=True))
        used = {word for each in svg.iter() for word in each.get("class", "").split()}
        assert {word for word in used if word.startswith("gate") and word != "gate"} <= {f"gate{n}" for n in range(6)}
        for word in used & {"cell", "line", "head", "dot", "box", "loop", "name", "state", "plain", "input", "index"}:
            assert f".{word}" in style_sheet()

    @each_cell
    def test_gates_are_named_and_share_a_colour_with_their_weights(self, cell):
        found = blocks(cell.graph)
        shares = {block.gate for block in found if block.kind == "share"}
        assert shares == set(range(len(cell.gates)))
        for block in found:
            if block.kind == "gate" and block.name in cell.gates:
                assert cell.gates[block.gate] == block.name


class TestRandomGraphs:
    @given(graphs())
    @settings(max_examples=60, deadline=None)
    def test_everything_holds(self, graph):
        check_blocks(graph)
        check_layout(graph)
        check_svg(graph)

    @given(graphs())
    @settings(max_examples=60, deadline=None)
    def test_without_names_more_is_folded_and_everything_holds(self, graph):
        bare = Graph(graph.nodes, graph.outputs)
        assert len(check_blocks(bare)) <= len(check_blocks(graph))
        check_layout(bare)
        check_svg(bare)

    @given(graphs())
    @settings(max_examples=60, deadline=None)
    def test_crossings_are_counted_and_no_more_than_at_first(self, graph):
        layers = arrange(graph, blocks(graph)).places
        naive = 0
        for layer, following in itertools.pairwise(layers):
            rank = {id(place): at for at, place in enumerate(following)}
            ends = [(at, rank[id(end)]) for at, place in enumerate(layer) for end in place.after]
            naive += sum((a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(ends, 2))
        assert crossings(layers) == naive
        for at, layer in enumerate(layers):
            assert all(place.layer == at for place in layer)
            assert all(after.layer == at + 1 for place in layer for after in place.after)

    @given(graphs())
    @settings(max_examples=30, deadline=None)
    def test_places_keep_their_distance_and_their_order(self, graph):
        layers = arrange(graph, blocks(graph)).places
        y = levels(layers, lambda upper, lower: 7.0 if upper.passes else 20.0)
        for layer in layers:
            for upper, lower in itertools.pairwise(layer):
                assert y[id(lower)] - y[id(upper)] >= (7.0 if upper.passes else 20.0) - 0.05


def texts(cell):
    return [plain(block.label) for block in blocks(cell.graph)]


class TestKnownPictures:
    def test_lstm(self):
        found = blocks(cells.lstm.graph)
        assert [(block.kind, plain(block.label), block.name) for block in found if block.kind not in ("share",)] == [
            ("input", "x_t", None), ("previous", "h_t−1", None), ("previous", "c_t−1", None),
            ("gate", "σ", "i"), ("gate", "σ", "f"), ("gate", "tanh", "g"), ("gate", "σ", "o"),
            ("operation", "×", None), ("operation", "×", None), ("operation", "+", "c"),
            ("operation", "tanh", None), ("operation", "×", "h"),
            ("state", "h_t", None), ("state", "c_t", None),
        ]  # fmt: skip
        assert "x_t W_if + h_t−1 W_hf + b_f" in texts(cells.lstm)
        assert plain(share("i", first_state="h", inp=True, rec=False)) == "x_t W_ii + b_ii"

    @pytest.mark.parametrize(
        ("name", "state"),
        [("lstm", "c"), ("peephole_lstm", "c"), ("cifg_lstm", "c"), ("slstm", "c"), ("gru", "h"), ("mgu", "h")],
    )
    def test_the_main_line_is_straight_and_on_top(self, name, state):
        graph = cells.by_name(name).graph
        layout = lay_out(graph)
        path = main_lines(graph, [box.block for box in layout.boxes])[0]
        first, last = layout.boxes[path[0]], layout.boxes[path[-1]]
        assert (first.block.state, last.block.state) == (state, state)
        assert len({layout.boxes[number].y for number in path}) == 1
        inner = [box.y for box in layout.boxes if box.block.kind not in ("previous", "state")]
        assert first.y == min(inner)
        along = [line for line in layout.lines if (line.source, line.target) in set(itertools.pairwise(path))]
        assert len(along) == len(path) - 1
        assert all(len({y for _, y in line.points}) == 1 for line in along)

    def test_a_simple_cell_has_no_main_line(self):
        graph = cells.rnn_tanh.graph
        assert main_lines(graph, blocks(graph)) == []

    @pytest.mark.parametrize(("name", "most"), [("lstm", 0), ("gru", 1), ("cifg_lstm", 0), ("peephole_lstm", 2)])
    def test_few_lines_cross(self, name, most):
        graph = cells.by_name(name).graph
        assert crossings(arrange(graph, blocks(graph)).places) <= most

    @pytest.mark.parametrize("name", cells.__all__)
    def test_a_line_rises_or_falls_once_at_most(self, name):
        for line in lay_out(cells.by_name(name).graph).lines:
            if not line.square:
                assert sum(a != b for (_, a), (_, b) in itertools.pairwise(line.points)) <= 1

    def test_a_share_that_is_used_twice_is_a_box_of_its_own(self):
        builder = Builder()
        x, h = builder.leaf("inp.a"), builder.leaf("rec.a")
        graph = builder.build({"h": (x + h) * builder.apply("tanh", x)})
        found = check_blocks(graph)
        assert [plain(block.label) for block in found if block.kind == "share"] == [
            "x_t W_ia + b_ia",
            "h_t−1 W_ha + b_ha",
        ]

    def test_the_shares_of_a_gru_come_apart_where_its_equations_need_it(self):
        found = texts(cells.gru)
        assert "x_t W_in + b_in" in found
        assert "h_t−1 W_hn + b_hn" in found
        assert "x_t W_ir + h_t−1 W_hr + b_r" in found

    def test_numbers_and_parameters_stand_in_their_operation(self):
        assert {"× p_i", "× p_f", "× p_o"} <= set(texts(cells.peephole_lstm))
        assert "1 −" in texts(cells.cifg_lstm)
        assert "× 0.5" in texts(folding)
        assert {"80 if u > 80 else u", "softplus(−u)", "u = 0", "b if a else c"} <= set(texts(cells.slstm))

    def test_a_sum_of_sums_is_one_sum_with_signs(self):
        (total,) = (block for block in blocks(folding.graph) if block.name == "total")
        found = blocks(folding.graph)
        # tau stands in it as a parameter; what is subtracted is marked
        signs = {plain(found[wire.source].label): wire.mark for wire in total.inputs}
        assert plain(total.label) == "− τ"
        assert signs == {
            "x_t W_ia + h_t−1 W_ha + b_a": "", "h_t−1": "−", "x_t W_ib + b_ib": "", "h_t−1 W_hb + b_hb": "−",
        }  # fmt: skip

    def test_words_for_a_tooltip(self):
        words = {block.name: block.words for block in blocks(cells.peephole_lstm.graph) if block.name}
        assert words["c"] == "a + b"
        assert {block.words for block in blocks(cells.peephole_lstm.graph)} >= {"p_o · c", "i · g", "c[t-1] · f"}

    def test_a_state_of_a_number_or_of_another_state(self):
        builder = Builder()
        graph = builder.build({"h": builder.leaf("prev.c"), "c": builder.const(2.0), "d": builder.leaf("inp.a")})
        check_blocks(graph)
        check_layout(graph)
        check_svg(graph)


def chain(length):
    builder = Builder()
    values = [builder.leaf("prev.h")]
    for _ in range(length):
        values.append(values[-1] * values[-1])
    return builder.build({"h": values[-1]}, {f"v{number}": value for number, value in enumerate(values)})


class TestSize:
    def test_a_long_chain_is_drawn(self):
        graph = chain(60)
        assert len(blocks(graph)) == 62
        assert len(draw_step(graph)) < 100_000
        bare = Graph(graph.nodes, graph.outputs)
        assert len(blocks(bare)) == 32  # u · u · u · u

    def test_what_nobody_could_read_is_refused(self):
        with pytest.raises(GraphError, match=f"too large to be drawn.*<= {MOST_BLOCKS}"):
            draw_step(chain(MOST_BLOCKS))


class TestReadings:
    def test_of_many_units_neighbours_are_averaged(self):
        assert binned([1.0, 2.0, 3.0], 32) == [1.0, 2.0, 3.0]
        assert binned([], 32) == []
        groups = binned([float(each) for each in range(70)], 32)
        assert len(groups) == 32
        assert groups[0] == 0.5
        assert math.fsum(groups) / 32 == pytest.approx(34.5, rel=0.02)

    def test_numbers_are_short(self):
        assert [written(each) for each in (0.0, -0.25, 1.5e-7, 123456.0, math.inf)] == [
            "0", "−0.25", "1.5e−7", "1.2e5", "inf",
        ]  # fmt: skip

    def test_a_drawing_shows_means_and_gradients(self):
        graph = cells.rnn_tanh.graph
        readings = {"3": Reading([0.25, 0.75], 0.125), "h": Reading([0.25, 0.75], 0.5), "prev.h": Reading([-1.0, 0.0])}
        root = ET.fromstring(draw_step(graph, readings=readings))
        shown = ["".join(each.itertext()) for each in root.iter("text") if "reading" in each.get("class", "")]
        assert shown == ["−0.5", "0.5", "‖∂‖ 0.12", "0.5", "‖∂‖ 0.5"]
        titles = [each.text for each in root.iter("title")]
        assert "tanh(u); mean 0.5, from 0.25 to 0.75; norm of the gradient 0.125" in titles


class TestUnrolled:
    @each_cell
    def test_three_steps_and_their_states(self, cell):
        root = ET.fromstring(draw_unrolled(cell.graph, cell.name))
        shown = Counter("".join(each.itertext()) for each in root.iter("text"))
        for time in ("t−1", "t", "t+1"):
            assert shown[f"x{time}"] == shown[f"y{time}"] == (2 if time == "t" else 1)
            assert all(shown["".join(run.text for run in symbol(state, time))] == 1 for state in cell.states)
        assert shown["the same weights at every step: Wih, Whh, b"] == 1

    def test_of_a_sequence(self):
        norms = {("h", 4): (0.5, 2e-3), ("h", 5): (0.25, 1.0)}
        svg = draw_unrolled(cells.gru.graph, "gru", step=5, norms=norms)
        shown = ["".join(each.itertext()) for each in ET.fromstring(svg).iter("text")]
        assert {"x4", "x5", "x6", "h3", "h6", "‖·‖ 0.5", "‖∂‖ 0.002", "‖∂‖ 1"} <= set(shown)


def test_a_drawing_is_the_same_every_time():
    code = (
        "from recollect.graph.graph import Graph\nfrom recollect.graph.drawing import draw_step\nimport sys\n"
        "print(draw_step(Graph.from_json(sys.stdin.read()), 'large', loops=True))"
    )
    source = str(Path(recollect.__file__).parents[1])
    found = {
        subprocess.run(
            [sys.executable, "-c", code], input=large.graph.to_json(), capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": source, "PYTHONIOENCODING": "utf-8"},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {draw_step(large.graph, "large", loops=True) + "\n"}
