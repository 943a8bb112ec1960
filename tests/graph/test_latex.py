"""Equations: their exact text for known cells, that LaTeX renders, and that the plain form computes the graph."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.mathtext import MathTextParser

import recollect
from random_graphs import graphs
from recollect import cells
from recollect.graph import ops
from recollect.graph.graph import Builder
from recollect.graph.latex import equations, plain
from recollect.graph.trace import TorchTarget

ALL = [*map(cells.by_name, cells.__all__)]


@recollect.cell(gates="a b", states="h c", vectors="tau p_a")
def brackets(inp, rec, prev, vec):
    """Every way in which brackets can be needed."""
    gate_a = torch.sigmoid(inp.a + rec.a + vec.p_a * prev.c)
    b = inp.b - (rec.b - gate_a) - (gate_a + 0.5) * (2 - prev.c)
    x = b / (vec.tau * (1 + gate_a)) - -(b * 2)
    power = (b * b + 1) ** 1.7 / torch.exp(-b) ** 1.5
    w = torch.where(gate_a > 0.5, -(gate_a + b), torch.minimum(gate_a, b) * -1.5)
    return w * x - (power - w) + 1e-8 * b, torch.abs(prev.h)


@recollect.cell(gates="a", states="h c")
def shifted(inp, rec, prev):
    """A state that is another one, a step late, and work that is used twice and has no name."""
    return (inp.a + rec.a) * torch.sigmoid(inp.a + rec.a), prev.h


class TestExactText:
    def test_lstm(self):
        assert equations(cells.lstm.graph) == [
            r"i_t = \sigma\left(x_t W_{ii} + b_{ii} + h_{t-1} W_{hi} + b_{hi}\right)",
            r"f_t = \sigma\left(x_t W_{if} + b_{if} + h_{t-1} W_{hf} + b_{hf}\right)",
            r"g_t = \tanh\left(x_t W_{ig} + b_{ig} + h_{t-1} W_{hg} + b_{hg}\right)",
            r"o_t = \sigma\left(x_t W_{io} + b_{io} + h_{t-1} W_{ho} + b_{ho}\right)",
            r"c_t = f_t \, c_{t-1} + i_t \, g_t",
            r"h_t = o_t \, \tanh\left(c_t\right)",
        ]
        assert plain(cells.lstm.graph)[0] == "i = σ(x[t] · W_ii + b_ii + h[t-1] · W_hi + b_hi)"
        assert plain(cells.lstm.graph)[-2:] == ["c[t] = f · c[t-1] + i · g", "h[t] = o · tanh(c[t])"]

    def test_gru(self):
        assert equations(cells.gru.graph) == [
            r"r_t = \sigma\left(x_t W_{ir} + b_{ir} + h_{t-1} W_{hr} + b_{hr}\right)",
            r"z_t = \sigma\left(x_t W_{iz} + b_{iz} + h_{t-1} W_{hz} + b_{hz}\right)",
            r"n_t = \tanh\left(x_t W_{in} + b_{in} + r_t \, \left(h_{t-1} W_{hn} + b_{hn}\right)\right)",
            r"h_t = n_t + z_t \, \left(h_{t-1} - n_t\right)",
        ]
        assert plain(cells.gru.graph)[2:] == [
            "n = tanh(x[t] · W_in + b_in + r · (h[t-1] · W_hn + b_hn))",
            "h[t] = n + z · (h[t-1] - n)",
        ]

    def test_rnn(self):
        preact = r"x_t W_{ia} + b_{ia} + h_{t-1} W_{ha} + b_{ha}"
        assert equations(cells.rnn_tanh.graph) == [rf"h_t = \tanh\left({preact}\right)"]
        assert equations(cells.rnn_relu.graph) == [rf"h_t = \operatorname{{ReLU}}\left({preact}\right)"]
        assert plain(cells.rnn_relu.graph) == ["h[t] = relu(x[t] · W_ia + b_ia + h[t-1] · W_ha + b_ha)"]

    def test_parameters_per_unit(self):
        assert equations(cells.peephole_lstm.graph)[0].endswith(r"b_{hi} + p_i \, c_{t-1}\right)")

    def test_a_cell_of_a_user(self):
        lines = equations(brackets.graph)
        assert lines[0].startswith(r"\mathrm{gate}_{a,t} = ")
        assert lines[1] == (
            r"b_t = x_t W_{ib} + b_{ib} - \left(h_{t-1} W_{hb} + b_{hb} - \mathrm{gate}_{a,t}\right)"
            r" - \left(\mathrm{gate}_{a,t} + 0.5\right) \, \left(2 - c_{t-1}\right)"
        )
        assert r"\mathrm{power}_t = \frac{{\left(b_t \, b_t + 1\right)}^{1.7}}{{\left(e^{-b_t}\right)}^{1.5}}" in lines
        assert any(line.startswith(r"w_t = \begin{cases} -\left(\mathrm{gate}_{a,t} + b_t\right) & ") for line in lines)
        assert r"\frac{b_t}{\tau \, \left(" in lines[-2]
        assert lines[-2].endswith(r"10^{-8} \, b_t")
        assert lines[-1] == r"c_t = \left|h_{t-1}\right|"
        # The variable x is not the input, so it is written out.
        assert not any(line.startswith("x_t = ") for line in lines)

    def test_what_has_no_name_is_not_written_twice(self):
        assert equations(shifted.graph) == [
            r"u_{1,t} = x_t W_{ia} + b_{ia} + h_{t-1} W_{ha} + b_{ha}",
            r"h_t = u_{1,t} \, \sigma\left(u_{1,t}\right)",
            r"c_t = h_{t-1}",
        ]
        assert plain(shifted.graph)[1:] == ["h[t] = u_1 · σ(u_1)", "c[t] = h[t-1]"]

    def test_numbers(self):
        def written(number):
            builder = Builder()
            graph = builder.build({"h": builder.apply("maximum", builder.leaf("prev.h"), number)})
            return equations(graph)[0].removeprefix(r"h_t = \max\left(h_{t-1}, ").removesuffix(r"\right)")

        numbers = (0.5, -2.0, 1e-8, 2.5e-8, -1e20, float("inf"))
        assert [*map(written, numbers)] == [
            "0.5", "-2", "10^{-8}", r"2.5 \times 10^{-8}", "-10^{20}", r"\infty",
        ]  # fmt: skip

    def test_text_stays_short_where_values_are_shared(self):
        builder = Builder()
        h = builder.leaf("prev.h")
        for _ in range(200):
            h = h * h
        assert sum(map(len, equations(builder.build({"h": h})))) < 20_000


def balanced(text):
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


class TestLatex:
    @pytest.mark.parametrize("cell", [*ALL, brackets, shifted], ids=lambda cell: cell.name)
    def test_renders(self, cell):
        parser = MathTextParser("path")
        for line in equations(cell.graph):
            assert balanced(line), line
            assert line.count(r"\left") == line.count(r"\right"), line
            if "cases" not in line:  # mathtext has none
                parser.parse(f"${line}$")

    @pytest.mark.parametrize("row", [row for row in ops.ROWS.values() if row.name != "where"], ids=lambda row: row.name)
    def test_every_row_renders(self, row):
        number = (2.5,) if row.takes_number else ()
        MathTextParser("path").parse(f"${row.latex(*'xyz'[: row.arity], *number)}$")

    def test_conditions(self):
        builder = Builder()
        a, b = (builder.leaf(f"prev.{name}") for name in "ab")
        both = builder.apply("logical_and", builder.apply("gt", a, 0.0), builder.apply("lt", b, 1.0))
        other = builder.apply("logical_not", builder.apply("logical_or", both, builder.apply("ne", b, b)))
        graph = builder.build({"h": builder.apply("where", other, a, b)})
        assert equations(graph)[0].startswith(
            r"h_t = \begin{cases} a_{t-1} & "
            r"\neg \left(\left(\left(a_{t-1} > 0\right) \wedge \left(b_{t-1} < 1\right)\right)"
            r" \vee \left(b_{t-1} \ne b_{t-1}\right)\right) \\ b_{t-1} & "
        )
        assert plain(graph) == [
            "h[t] = (a[t-1] if not (((a[t-1] > 0) and (b[t-1] < 1)) or (b[t-1] ≠ b[t-1])) else b[t-1])"
        ]

    @given(graphs())
    @settings(max_examples=40, deadline=None)
    def test_random_graphs_are_balanced(self, graph):
        for line in equations(graph):
            assert balanced(line), line
            assert line.count(r"\left") == line.count(r"\right"), line

    def test_names_are_valid_latex(self):
        builder = Builder()
        names = ["alpha", "log_f", "a_b_c", "_hidden", "B", "größe"]
        values = {name: builder.apply("sin", builder.leaf("prev.h") + float(i)) for i, name in enumerate(names)}
        total = sum(values.values(), start=builder.const(0.0))
        lines = equations(builder.build({"state_1": total}, values))
        assert [line.partition(" = ")[0] for line in lines] == [
            r"\alpha_t", r"\mathrm{log}_{f,t}", r"a_{\mathrm{b\_c},t}", r"\mathrm{hidden}_t", "B_t",
            r"\mathrm{größe}_t", r"\mathrm{state}_{1,t}",
        ]  # fmt: skip
        for line in lines:
            MathTextParser("path").parse(f"${line}$")


def compute(lines, scope):
    """Run plain equations as Python, with t = 0."""
    symbols = {"σ": "sigmoid", "ln": "log", "min": "minimum", "max": "maximum", "sg": "detach"}
    names = {**{name: name for name in ops.ROWS if hasattr(torch, name)}, **symbols}
    functions = {written: getattr(torch, name) for written, name in names.items()}
    functions["softplus"] = torch.nn.functional.softplus
    # A number alone may be an argument, so functions take both.
    tensor = {name: lambda *args, f=f: f(*(torch.as_tensor(a, dtype=torch.float64) for a in args))
              for name, f in functions.items()}  # fmt: skip
    namespace = {**tensor, "t": 0, **scope}
    for line in lines:
        name, _, text = line.partition(" = ")
        for sign, python in {"·": "*", "^": "**", " = ": " == ", "≤": "<=", "≥": ">=", "≠": "!="}.items():
            text = text.replace(sign, python)
        exec(f"{name} = {text}", namespace)
    return namespace


class TestPlain:
    @given(graphs(numbers=st.sampled_from([0.5, -2.0, 3.0])))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_computes_what_the_graph_computes(self, graph):
        tensors = {name: torch.tensor(v, dtype=torch.float64) for name, v in
                   {"inp.a": 0.75, "rec.a": -1.25, "prev.h": 0.375, "vec.p": 1.5}.items()}  # fmt: skip
        states = {name: {} for name, _ in graph.outputs}
        scope = {
            **states, "x": {0: tensors["inp.a"]}, "h": {-1: tensors["prev.h"]}, "p": tensors["vec.p"],
            "W_ia": 1, "b_ia": 0, "W_ha": 1, "b_ha": 0,
        }  # fmt: skip
        scope[graph.outputs[0][0]][-1] = tensors["rec.a"]
        found = compute(plain(graph), scope)
        for name, value in graph.evaluate(tensors, TorchTarget()).items():
            wanted = torch.as_tensor(value, dtype=torch.float64)
            actual = torch.as_tensor(found[name][0], dtype=torch.float64)
            torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-8, equal_nan=True)

    def test_brackets(self):
        builder = Builder()
        a, b, c = (builder.leaf(f"prev.{name}") for name in "abc")
        written = {
            "a - (b - c)": a - (b - c),
            "a - (b + c)": a - (b + c),
            "a - b - c": a - b - c,
            "a / (b / c)": a / (b / c),
            "a / (b · c)": a / (b * c),
            "a / b / c": a / b / c,
            "a · b / c": a * b / c,
            "c · (a + b)": (a + b) * c,
            "-(a + b)": -(a + b),
            "-a · b": -(a * b),
            "(-a) / b": -a / b,
            "a + (-2)": a + -2.0,
            "2 · (3 · a)": 2.0 * (3.0 * a),
            "(a · b)^1.5": builder.apply("power", a * b, attr=1.5),
            "(a^1.5)^2.5": builder.apply("power", builder.apply("power", a, attr=1.5), attr=2.5),
            "a^(-1.5)": builder.apply("power", a, attr=-1.5),
            "(a · b)^(a - c)": builder.apply("pow", a * b, a - c),
            "a^(b^c)": builder.apply("pow", a, builder.apply("pow", b, c)),
            "fmod(a + b, 2.5)": builder.apply("fmod", a + b, attr=2.5),
            "lerp(a, b, -c)": builder.apply("lerp", a, b, -c),
        }
        for text, expr in written.items():
            (line,) = plain(builder.build({"h": expr}))
            assert line.removeprefix("h[t] = ").replace("[t-1]", "") == text

    def test_a_conditional(self):
        builder = Builder()
        h = builder.leaf("prev.h")
        graph = builder.build({"h": builder.apply("where", builder.apply("ge", h, 0.0), h, -h) * 2.0})
        assert plain(graph) == ["h[t] = 2 · (h[t-1] if h[t-1] ≥ 0 else -h[t-1])"]
