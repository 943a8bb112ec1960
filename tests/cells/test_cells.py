"""Every cell that comes with Recollect: its declaration, its step against independent formulas, its copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import recollect
from recollect import cells
from recollect.cells import Cell
from recollect.errors import CellError, GraphError, InputError

NAMES = cells.__all__
B, H = 4, 5
INPUT = 3


@pytest.fixture(params=NAMES)
def cell(request):
    return cells.by_name(request.param)


def draw(cell, seed=0, scale=1.0):
    """Random shares, states and vectors in float64."""
    generator = torch.Generator().manual_seed(seed)

    def tensors(names, *shape):
        return [scale * torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in names]

    return tensors(cell.gates, B, H), tensors(cell.gates, B, H), tensors(cell.states, B, H), tensors(cell.vectors, H)


def run(cell, inp, rec, prev, vec):
    return cell(cell.Shares(*inp), cell.Shares(*rec), cell.States(*prev), cell.Vectors(*vec) if vec else None)


DECLARED = {
    "rnn_tanh": ("a", "h", ""),
    "rnn_relu": ("a", "h", ""),
    "lstm": ("i f g o", "h c", ""),
    "gru": ("r z n", "h", ""),
    "peephole_lstm": ("i f g o", "h c", "p_i p_f p_o"),
    "cifg_lstm": ("f g o", "h c", ""),
    "mgu": ("f n", "h", ""),
    "slstm": ("i f g o", "h c n m", ""),
}


class TestDeclaration:
    def test_names_and_order(self, cell):
        assert (" ".join(cell.gates), " ".join(cell.states), " ".join(cell.vectors)) == DECLARED[cell.name]
        assert cell.Shares._fields == cell.gates
        assert cell.States._fields == cell.states
        assert cell.Vectors._fields == cell.vectors

    def test_graph_has_each_share_and_returns_each_state(self, cell):
        shares = {f"{kind}.{gate}" for kind in ("inp", "rec") for gate in cell.gates}
        assert shares <= set(cell.graph.leaves)
        assert tuple(name for name, _ in cell.graph.outputs) == cell.states

    def test_docstring_has_equations_and_source(self, cell):
        assert ".. math::" in cell.__doc__
        assert "Source: " in cell.__doc__

    def test_repr_is_the_declaration(self, cell):
        gates, states, vectors = DECLARED[cell.name]
        tail = f", vectors={vectors!r}" if vectors else ""
        assert repr(cell) == f"<cell {cell.name}: gates={gates!r}, states={states!r}{tail}>"

    def test_by_name(self):
        assert cells.by_name("gru") is cells.gru
        with pytest.raises(InputError, match="did you mean 'lstm'"):
            cells.by_name("lsmt")
        with pytest.raises(InputError, match="write your own"):
            cells.by_name("transformer")


class TestAgainstTorch:
    @pytest.mark.parametrize(
        ("cell", "module"),
        [
            (cells.lstm, nn.LSTMCell(INPUT, H)),
            (cells.gru, nn.GRUCell(INPUT, H)),
            (cells.rnn_tanh, nn.RNNCell(INPUT, H)),
            (cells.rnn_relu, nn.RNNCell(INPUT, H, nonlinearity="relu")),
        ],
        ids=["lstm", "gru", "rnn_tanh", "rnn_relu"],
    )
    def test_step_is_torchs_cell(self, cell, module):
        module = module.double()
        x, *prev = (torch.randn(B, n, dtype=torch.float64) for n in (INPUT, *[H] * len(cell.states)))
        inp = nn.functional.linear(x, module.weight_ih, module.bias_ih).chunk(len(cell.gates), -1)
        rec = nn.functional.linear(prev[0], module.weight_hh, module.bias_hh).chunk(len(cell.gates), -1)
        expected = module(x, tuple(prev) if len(prev) > 1 else prev[0])
        expected = expected if isinstance(expected, tuple) else (expected,)
        for found, wanted in zip(run(cell, inp, rec, prev, []), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def peephole_lstm(inp, rec, prev, vec):
    """Gers & Schmidhuber 2000, with a tanh on both squashers."""
    (i, f, g, o), (_, c), (p_i, p_f, p_o) = [a + b for a, b in zip(inp, rec, strict=True)], prev, vec
    new = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * torch.tanh(g)
    return sigmoid(o + p_o * new) * torch.tanh(new), new


def cifg_lstm(inp, rec, prev, vec):
    """Greff et al. 2017, CIFG: the input gate is 1 - f."""
    (f, g, o), (_, c) = [a + b for a, b in zip(inp, rec, strict=True)], prev
    new = sigmoid(f) * c + (1 - sigmoid(f)) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(new), new


def mgu(inp, rec, prev, vec):
    """Zhou et al. 2016, with the gate after the product."""
    f = sigmoid(inp[0] + rec[0])
    return ((1 - f) * prev[0] + f * torch.tanh(inp[1] + f * rec[1]),)


def slstm(inp, rec, prev, vec):
    """Beck et al. 2024, equations 8-17, with the sigmoid forget gate."""
    (i, f, g, o), (_, c, n, m) = [a + b for a, b in zip(inp, rec, strict=True)], prev
    new_m = torch.maximum(torch.log(sigmoid(f)) + m, i)
    i_stable, f_stable = torch.exp(i - new_m), torch.exp(torch.log(sigmoid(f)) + m - new_m)
    new_c, new_n = f_stable * c + i_stable * torch.tanh(g), f_stable * n + i_stable
    return sigmoid(o) * new_c / new_n, new_c, new_n, new_m


class TestAgainstThePapers:
    @pytest.mark.parametrize("formula", [peephole_lstm, cifg_lstm, mgu, slstm], ids=lambda f: f.__name__)
    def test_step_is_the_formula(self, formula):
        cell = cells.by_name(formula.__name__)
        arguments = draw(cell)
        for found, wanted in zip(run(cell, *arguments), formula(*arguments), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)

    def test_slstm_is_the_unstabilised_form_where_that_does_not_overflow(self):
        """From zero states over six steps: c = σ(f) c + e^i g, n = σ(f) n + e^i, h = o c / n; m cancels in h."""
        cell = cells.slstm
        stable = [torch.zeros(B, H, dtype=torch.float64) for _ in cell.states]
        c = n = torch.zeros(B, H, dtype=torch.float64)
        for t in range(6):
            inp, rec, _, _ = draw(cell, seed=t, scale=2.0)
            stable = list(run(cell, inp, rec, stable, []))
            i, f, g, o = (a + b for a, b in zip(inp, rec, strict=True))
            c = sigmoid(f) * c + torch.exp(i) * torch.tanh(g)
            n = sigmoid(f) * n + torch.exp(i)
            torch.testing.assert_close(stable[0], sigmoid(o) * c / n, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(stable[1] * torch.exp(stable[3]), c, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(stable[2] * torch.exp(stable[3]), n, rtol=1e-10, atol=1e-12)

    def test_slstm_stays_finite_where_the_unstabilised_form_does_not(self):
        cell = cells.slstm
        inp, rec, prev, _ = draw(cell)
        inp[0] = inp[0] + 1000.0  # e^1000 is infinite in float64
        prev[2] = prev[2].abs()
        assert torch.exp(inp[0]).isinf().all()
        assert all(value.isfinite().all() for value in run(cell, inp, rec, prev, []))


class TestDerivatives:
    def test_first_and_second_derivatives_are_those_of_finite_differences(self, cell):
        groups = draw(cell, seed=3)
        sizes = [len(group) for group in groups]
        flat = [tensor[..., :2, :2].clone() if tensor.dim() > 1 else tensor[:2].clone() for g in groups for tensor in g]
        if cell.name == "slstm":
            flat[sizes[0] + sizes[1] + 2].abs_().add_(1.0)  # n > 0, as it is in use

        def step(*tensors):
            parts = iter(tensors)
            return run(cell, *([next(parts) for _ in range(size)] for size in sizes))

        leaves = [tensor.requires_grad_() for tensor in flat]
        assert torch.autograd.gradcheck(step, leaves)
        assert torch.autograd.gradgradcheck(step, leaves)


@recollect.cell(gates="a b", states="h c", vectors="p")
def odd_one(inp, rec, prev, vec):
    """Conditions, powers, constants on their own and a state that is a number."""
    a = torch.where(inp.a > rec.a, inp.a, 0.0) + torch.sqrt(torch.tensor(2.25)) * (rec.b > 0)
    h = nn.functional.leaky_relu(a, 0.2) + torch.abs(prev.c * vec.p) ** 1.5 + inp.b * torch.where(prev.h > 0, 0.25, 0.5)
    return h, prev.h * 0 + 1


COPIED = [*map(cells.by_name, NAMES), odd_one]


class TestCopies:
    @pytest.mark.parametrize("cell", COPIED, ids=lambda cell: cell.name)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_from_graph_computes_the_same(self, cell, dtype):
        again = pickle.loads(pickle.dumps(cell))
        arguments = [[tensor.to(dtype) for tensor in group] for group in draw(cell)]
        tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.05}[dtype]
        for found, wanted in zip(run(again, *arguments), run(cell, *arguments), strict=True):
            assert found.shape == (B, H)
            assert found.dtype == dtype
            torch.testing.assert_close(found, wanted.to(dtype), rtol=tolerance, atol=tolerance, equal_nan=True)

    @pytest.mark.parametrize("cell", COPIED, ids=lambda cell: cell.name)
    def test_pickle_keeps_the_declaration_and_the_content(self, cell):
        again = pickle.loads(pickle.dumps(cell))
        assert repr(again) == repr(cell)
        assert again.graph == cell.graph
        assert again.graph.key == cell.graph.key
        assert pickle.dumps(again) == pickle.dumps(cell)

    def test_a_pickle_holds_no_code_of_the_author(self):
        assert b"odd_one" in pickle.dumps(odd_one)
        assert __name__.encode() not in pickle.dumps(odd_one)

    def test_a_cell_is_immutable_so_copies_are_itself(self, cell):
        assert copy.deepcopy(cell) is cell
        assert copy.deepcopy({"cell": cell})["cell"] is cell

    def test_gradients_of_a_copy_are_those_of_the_cell(self, cell):
        again = pickle.loads(pickle.dumps(cell))
        grads = []
        for each in (cell, again):
            arguments = draw(each)
            leaves = [tensor.requires_grad_() for group in arguments for tensor in group]
            total = sum(value.sin().sum() for value in run(each, *arguments))
            grads.append(torch.autograd.grad(total, leaves, materialize_grads=True))
        for found, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


class TestFromGraph:
    @pytest.mark.parametrize(
        "changes",
        [
            {"gates": "i f g"},
            {"gates": "i f g o x"},
            {"states": "c h"},
            {"states": "h"},
            {"vectors": "p"},
            {"name": "not a name"},
            {"name": "\x1b[2J"},
            {"name": 3},
            {"gates": "i f g o o"},
            {"gates": "i f g o class"},
            {"states": ""},
        ],
        ids=str,
    )
    def test_a_declaration_that_does_not_fit(self, changes):
        spec = {"name": "lstm", "gates": "i f g o", "states": "h c", "vectors": "", "graph": cells.lstm.graph.to_json()}
        assert Cell.from_graph(**spec).graph == cells.lstm.graph
        with pytest.raises(CellError):
            Cell.from_graph(**{**spec, **changes})

    def test_a_graph_that_is_none(self):
        with pytest.raises(GraphError):
            Cell.from_graph("lstm", "i f g o", "h c", "", "{}")

    def test_a_state_that_is_a_constant_has_the_shape_of_the_others(self):
        nodes = '["leaf",[],"inp.a"],["tanh",[0],null],["const",[],[2.0]]'
        cell = Cell.from_graph(
            "k", "a", "h c", "", f'{{"format":1,"names":[],"nodes":[{nodes}],"outputs":[["h",1],["c",2]]}}'
        )
        _, c = run(cell, *draw(cell))
        assert torch.equal(c, torch.full((B, H), 2.0, dtype=torch.float64))
