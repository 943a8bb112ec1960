"""A step with its numbers: against a loop written here, for every cell against torch; the page; what is refused."""

import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_report import Page
from torch import nn

import recollect
from recollect import cells
from recollect.diagnosis import describe
from recollect.diagnosis.runs.recording import record
from recollect.errors import InputError
from recollect.graph import ops
from recollect.graph.gates import activations
from recollect.graph.mathml import mathml
from recollect.graph.trace import TorchTarget


@dataclass
class Seen:
    gates: dict
    states: dict
    gradients: dict


def peephole_by_hand(layer, x, weights, t_seen):
    """A peephole LSTM written out, whose gates and states at one step keep their gradients."""
    h = c = torch.zeros(layer.hidden_size, dtype=torch.float64)
    w = {name: p.detach().double() for name, p in layer.named_parameters()}
    p_i, p_f, p_o = (w[f"vector_{name}_l0"] for name in ("p_i", "p_f", "p_o"))
    for t, row in enumerate(x):
        pre = row @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T + w["bias_hh_l0"]
        a_i, a_f, a_g, a_o = pre.chunk(4)
        i, f, g = torch.sigmoid(a_i + p_i * c), torch.sigmoid(a_f + p_f * c), torch.tanh(a_g)
        if t == t_seen:
            i, f, g = (each.detach().requires_grad_() for each in (i, f, g))
        c_inside = f * c + i * g
        o = torch.sigmoid(a_o + p_o * c_inside)
        if t == t_seen:
            o = o + 0  # a node of its own, through which p_o's way to c goes on
            o.retain_grad()
        h_inside = o * torch.tanh(c_inside)
        h, c = h_inside + 0, c_inside + 0  # what leaves the step
        if t == t_seen:
            h.retain_grad()
            c.retain_grad()
            seen = {"i": i, "f": f, "g": g, "o": o}, {"h": h, "c": c}
    (h @ weights).backward()
    gates, states = seen
    return Seen(
        {name: each.detach() for name, each in gates.items()},
        {name: each.detach() for name, each in states.items()},
        {name: each.grad for name, each in (gates | states).items()},
    )


@pytest.mark.parametrize("step", [0, 3, 6])
def test_numbers_are_those_of_a_loop_by_hand(step):
    torch.manual_seed(1)
    layer = recollect.nn.Recurrent(cells.peephole_lstm, 3, 5)
    x, weights = torch.randn(7, 1, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    seen = peephole_by_hand(layer, x[:, 0], weights, step)
    moment = describe(layer, x, loss=lambda out, _: out[0][-1, 0] @ weights, step=step).moment
    assert (moment.name, moment.step, moment.steps) == ("l0", step, 7)
    rows = {(row.kind, row.name): row.values for row in moment.rows}
    assert list(rows) == [("gate", each) for each in "ifgo"] + [("state", each) for each in "hc"] + [
        ("gradient", each) for each in "ifgohc"
    ]
    expected = {("gate", k): v for k, v in seen.gates.items()} | {("state", k): v for k, v in seen.states.items()}
    expected |= {("gradient", k): v for k, v in seen.gradients.items() if v is not None}
    expected.setdefault(("gradient", "c"), torch.zeros(5))  # nothing uses c after the last step
    assert rows.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(rows[key], values, rtol=1e-9, atol=1e-12, err_msg=str(key))


@pytest.mark.parametrize("name", cells.__all__)
def test_every_box_has_its_value_and_gates_have_torchs_gradient(name):
    torch.manual_seed(2)
    cell = cells.by_name(name)
    layer = recollect.nn.Recurrent(cell, 2, 4)
    x = torch.randn(6, 1, 2)
    moment = describe(layer, x, step=3).moment
    (call,), _ = record(layer, x, None, None, None)
    unrolled = call.unrolled["l0"]
    leaves = {key: value[3] if value.dim() == 2 else value for key, value in unrolled.leaves.items()}
    target = TorchTarget(torch.float64)
    values = cell.graph.values(leaves, target)
    for node, value in enumerate(values):
        expected = torch.as_tensor(value, dtype=torch.float64).expand(4)
        np.testing.assert_allclose(moment.readings[str(node)].values, expected, rtol=1e-12)
    # A gate's gradient by torch: run the rest of the step from a leaf in the gate's place.
    for gate, found in activations(cell.graph, cell.gates).items():
        free = values[found.node].clone().requires_grad_()
        rest = []
        for node, each in enumerate(cell.graph.nodes):
            if node == found.node or each.op in ("leaf", "const"):
                rest.append(free if node == found.node else values[node])
            else:
                extra = () if each.attr is None else (each.attr,)
                rest.append(ops.ROWS[each.op].emit(target, *(rest[i] for i in each.args), *extra))
        seeds = [gradient[3] for gradient in unrolled.state_gradients]
        total = sum((rest[index] * seed).sum() for (_, index), seed in zip(cell.graph.outputs, seeds, strict=True))
        (expected,) = torch.autograd.grad(total, free, allow_unused=True)
        expected = torch.zeros(4) if expected is None else expected
        row = next(row for row in moment.rows if (row.kind, row.name) == ("gradient", gate))
        np.testing.assert_allclose(row.values, expected, rtol=1e-9, atol=1e-300)
        assert moment.readings[str(found.node)].gradient == pytest.approx(math.hypot(*expected.tolist()))


class TestWhichStep:
    def test_the_last_by_default_and_from_the_end(self):
        layer, x = recollect.nn.GRU(2, 3), torch.randn(5, 1, 2)
        assert [describe(layer, x, step=step).moment.step for step in (-1, 4, -5, 0)] == [4, 4, 0, 0]

    @pytest.mark.parametrize("step", [5, -6])
    def test_one_that_is_not_there(self, step):
        with pytest.raises(InputError, match=rf"no such step; given: step {step}; expected: 0 to 4, or -1 to -5"):
            describe(recollect.nn.GRU(2, 3), torch.randn(5, 1, 2), step=step)

    def test_of_several_rows_the_longest(self):
        torch.manual_seed(3)
        layer, x = recollect.nn.LSTM(2, 3, batch_first=True), torch.randn(3, 6, 2)
        moment = describe(layer, x, lengths=[2, 5, 4]).moment
        alone = describe(layer, x[1:2, :5]).moment
        assert (moment.step, moment.steps) == (4, 5)
        for row, other in zip(moment.rows, alone.rows, strict=True):
            np.testing.assert_allclose(row.values, other.values, rtol=1e-12)

    def test_what_a_step_began_with_is_what_the_one_before_left(self):
        layer, x = recollect.nn.LSTM(2, 3), torch.randn(6, 1, 2)
        before, after = (describe(layer, x, step=step).moment for step in (2, 3))
        for state in ("h", "c"):
            assert after.readings[f"prev.{state}"] == before.readings[state]
            assert after.norms[state, 2] == before.norms[state, 2]
            assert before.norms[state, 2][1] == before.readings[state].gradient
        assert {step for _, step in after.norms} == {1, 2, 3, 4, 5}
        assert describe(layer, x, step=0).moment.readings["prev.h"].gradient is None

    def test_backwards_in_time(self):
        torch.manual_seed(4)
        layer = recollect.nn.LSTM(2, 3, bidirectional=True)
        x = torch.randn(6, 1, 2)
        moment = describe(layer, x, layer="l0_reverse", step=2).moment
        following = describe(layer, x, layer="l0_reverse", step=3).moment
        assert moment.name == "l0_reverse"
        assert moment.readings["prev.c"] == following.readings["c"]

    def test_layers(self):
        model = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4, num_layers=2))
        x = torch.randn(5, 1, 2)
        assert describe(model, x).moment.name == "1.l1"
        assert describe(model, x, layer="1.l0").moment.name == "1.l0"
        with pytest.raises(
            InputError, match=r"no recurrent layer that ran fits layer=; given: '1\.l2'.*1\.l0\.h.*1\.l1"
        ):
            describe(model, x, layer="1.l2")


class TestWithoutARun:
    def test_a_cell_a_layer_of_ours_and_one_of_torch(self):
        assert describe(cells.gru).facts()["parameters"] == "3·H·(I + H + 2)"
        for layer in (recollect.nn.GRU(2, 5), nn.GRU(2, 5), nn.Sequential(nn.Linear(1, 2), nn.GRU(2, 5))):
            found = describe(layer)
            assert found.cell is cells.gru
            assert found.moment is None
            assert found.facts()["parameters"] == "135 = 3·H·(I + H + 2)  with I = 2, H = 5"

    def test_where_the_formula_does_not_hold_the_parameters_are_counted(self):
        layer = recollect.nn.LSTM(3, 4, 2, bias=False, proj_size=2)
        count = sum(parameter.numel() for parameter in layer.parameters())
        assert describe(layer).facts()["parameters"] == f"{count} with I = 3, H = 4"

    def test_projections_and_zoneout_have_their_numbers(self):
        torch.manual_seed(5)
        layer = recollect.nn.LSTM(3, 6, proj_size=2, zoneout=(0.1, 0.3))
        moment = describe(layer, torch.randn(5, 1, 3)).moment
        lengths = {(row.kind, row.name): len(row.values) for row in moment.rows}
        assert lengths["state", "h"] == lengths["gradient", "h"] == 2
        assert lengths["state", "c"] == lengths["gate", "o"] == lengths["gradient", "o"] == 6

    def test_a_cell_cannot_run(self):
        with pytest.raises(InputError, match=r"no weights.*recollect\.nn\.Recurrent\(gru, input_size, hidden_size\)"):
            describe(cells.gru, torch.randn(3, 1, 2))

    def test_a_model_without_a_recurrent_layer(self):
        with pytest.raises(InputError, match="no recurrent layer to describe; given: Linear"):
            describe(nn.Linear(2, 3))


@pytest.fixture(scope="module")
def description():
    torch.manual_seed(0)
    return describe(recollect.nn.LSTM(2, 40), torch.randn(9, 1, 2), step=4)


class TestWritten:
    def test_a_table_for_the_terminal(self, description):
        text = str(description)
        assert "c[t] = f · c[t-1] + i · g" in text
        table = text[text.index("l0 at step 4 of 0 to 8") :].splitlines()
        assert max(map(len, table)) <= 115
        assert re.split("  +", table[2].strip()) == [
            "mean", "min", "max", "norm", "saturated", "unit 0", "unit 1", "unit 2", "unit 3",
        ]  # fmt: skip
        (row,) = (line.split() for line in table if line.startswith("gate f"))
        values = next(row for row in description.moment.rows if (row.kind, row.name) == ("gate", "f")).values
        shown = [values.mean(), values.min(), values.max(), np.linalg.norm(values)]
        assert row[2:6] == [f"{each:.3g}" for each in shown]
        assert row[6] == "0%"
        assert row[7:] == [f"{each:.3g}" for each in values[:4]]

    def test_saturated_units_are_counted(self):
        layer = recollect.nn.LSTM(1, 4)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
            layer.bias_ih_l0[4:6] = 100.0  # two of the forget gate's units
        (row,) = (each for each in describe(layer, torch.zeros(3, 1, 1)).moment.rows if each.title == "gate f")
        assert row.saturated == 0.5

    def test_the_page_needs_nothing_else_and_holds_all(self, description, tmp_path):
        path = tmp_path / "step.html"
        description.to_html(path)
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=|\bhref=", source)
        page = Page(source)
        assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
        pictures = page.all("svg")
        assert [each["role"] for each in pictures] == ["img", "img"]
        assert pictures[0]["aria-label"].startswith("One step of the cell lstm, whose states are h and c: i = σ(")
        assert len(page.all("math")) == len(mathml(cells.lstm.graph)) == 6
        words = "".join(page.text)
        for row in description.moment.rows:
            assert f"{row.values.mean():.3g}" in words
        for fact in description.facts().values():
            assert fact in words
        assert "prefers-color-scheme: dark" in source
        assert "viewport" in source

    def test_without_numbers_the_states_lead_back(self, tmp_path):
        path = tmp_path / "cell.html"
        describe(cells.lstm).to_html(path)
        page = Page(path.read_text(encoding="utf-8"))
        assert "".join(page.text).count("one step later") == 2
        assert not page.all("table")

    def test_a_step_that_is_too_large_to_draw_has_its_equations(self, tmp_path, monkeypatch):
        monkeypatch.setattr("recollect.graph.drawing.layout.MOST_BLOCKS", 5)
        describe(cells.lstm).to_html(tmp_path / "page.html")
        page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
        assert "too large to be drawn" in "".join(page.text)
        assert len(page.all("math")) == 6
        assert len(page.all("svg")) == 1
