"""What the plan decides for each cell, and that its two graphs are the step and its derivative."""

from __future__ import annotations

import pytest
import torch

import recollect
from recollect import cells
from recollect.engine.plan import make_plan
from recollect.graph.trace import TorchTarget


def plan_of(cell):
    return make_plan(cell.graph, cell.gates, cell.states, cell.vectors)


def test_the_lstm_saves_its_four_gates_and_tanh_c():
    plan = plan_of(cells.lstm)
    assert plan.saved == 5
    assert not plan.split
    assert plan.accumulators == ("pre.i", "pre.f", "pre.g", "pre.o")
    assert plan.input_range == plan.recurrent_range == (0, 4)


def test_the_gru_keeps_the_shares_of_n_apart():
    plan = plan_of(cells.gru)
    assert plan.split
    assert plan.accumulators == ("inp.n", "pre.r", "pre.z", "rec.n")
    assert (plan.input_range, plan.recurrent_range) == ((0, 3), (1, 4))
    assert plan.input_gates == (2, 0, 1)


def test_a_simple_cell_saves_its_output_alone():
    assert plan_of(cells.rnn_tanh).saved == 1


def test_a_gate_whose_sum_is_used_twice_still_has_one_accumulator():
    @recollect.cell(gates="a b", states="h")
    def twice(inp, rec, prev):
        a = inp.a + rec.a
        return torch.tanh(a) * torch.sigmoid(a) + (inp.b + rec.b) * inp.b

    assert plan_of(twice).accumulators == ("inp.b", "pre.a", "rec.b")


def test_a_gate_with_one_share_has_one_accumulator():
    @recollect.cell(gates="a b", states="h")
    def lone(inp, rec, prev):
        return torch.tanh(inp.a) + rec.b

    plan = plan_of(lone)
    assert plan.accumulators == ("inp.a", "rec.b")
    assert (plan.input_range, plan.recurrent_range) == ((0, 1), (1, 2))


@pytest.mark.parametrize("name", cells.__all__)
def test_accumulators_lie_so_that_each_product_writes_one_run(name):
    plan = plan_of(cells.by_name(name))
    kinds = [each.partition(".")[0] for each in plan.accumulators]
    assert kinds == sorted(kinds, key=("inp", "pre", "rec").index)
    (first, last), (start, end) = plan.input_range, plan.recurrent_range
    assert set(kinds[first:last]) <= {"inp", "pre"}
    assert set(kinds[start:end]) <= {"pre", "rec"}
    assert first == 0
    assert end == len(kinds)


@recollect.cell(gates="a b", states="h s", vectors="v")
def branching(inp, rec, prev, vec):
    a = torch.where(inp.a > rec.a, inp.a * vec.v, torch.exp(-rec.a * rec.a))
    s = torch.minimum(prev.s, inp.b + rec.b) + torch.clamp(a, -0.3, 0.3)
    return torch.nn.functional.softplus(s) / (1 + a * a), s


@pytest.mark.parametrize("cell", [*(cells.by_name(name) for name in cells.__all__), branching], ids=lambda c: c.name)
def test_the_plans_graphs_equal_autograd_of_the_step(cell):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 0.7).requires_grad_()

    rows, units = 6, 4
    inp = cell.Shares(*(draw(rows, units) for _ in cell.gates))
    rec = cell.Shares(*(draw(rows, units) for _ in cell.gates))
    prev = cell.States(*(draw(rows, units) for _ in cell.states))
    vec = cell.Vectors(*(draw(units) for _ in cell.vectors))
    new = cell(inp, rec, prev, vec)
    grads = [torch.randn(rows, units, generator=generator, dtype=torch.float64) for _ in cell.states]
    wanted = [*inp, *rec, *prev, *vec]
    expected = torch.autograd.grad(new, wanted, grads, allow_unused=True)
    expected = [torch.zeros_like(w) if e is None else e for w, e in zip(wanted, expected, strict=True)]

    plan, leaves = plan_of(cell), {}
    for index, gate in enumerate(cell.gates):
        leaves |= {f"inp.{gate}": inp[index], f"rec.{gate}": rec[index], f"pre.{gate}": inp[index] + rec[index]}
    leaves |= {f"prev.{name}": each for name, each in zip(cell.states, prev, strict=True)}
    leaves |= {f"vec.{name}": each for name, each in zip(cell.vectors, vec, strict=True)}
    with torch.no_grad():
        forward = plan.forward.evaluate(leaves, TorchTarget())
        for name, each in zip(cell.states, new, strict=True):
            torch.testing.assert_close(forward[f"next.{name}"], each.detach(), rtol=0, atol=1e-13)
        known = {name: each for name, each in leaves.items() if name.startswith(("prev.", "vec."))}
        known |= {name: each for name, each in forward.items() if name.startswith("saved.")}
        known |= {f"grad.{name}": each for name, each in zip(cell.states, grads, strict=True)}
        found = plan.backward.evaluate(known, TorchTarget())
    names = [
        *(f"d{kind}.{gate}" for kind in ("inp", "rec") for gate in cell.gates),
        *(f"dprev.{name}" for name in cell.states),
        *(f"dvec.{name}" for name in cell.vectors),
    ]
    for name, each in zip(names, expected, strict=True):
        value = torch.broadcast_to(torch.as_tensor(found[name], dtype=torch.float64), (rows, units))
        value = value.sum(0) if name.startswith("dvec.") else value
        torch.testing.assert_close(value, each, rtol=1e-11, atol=1e-12, msg=name)
