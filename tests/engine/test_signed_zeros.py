"""Cells that differ in the sign of a zero alone are two cells, for every cache: in memory, on disk, in any order."""

from __future__ import annotations

import pytest
import torch

import recollect
from forgetting import forget_problems
from recollect import nn
from recollect.engine.llvm import kernels
from recollect.engine.plan import Variant, make_plan
from recollect.engine.waves import cut
from recollect.graph.derivatives import node_gradients, partials
from recollect.graph.trace import TorchTarget

# Each makes a value whose sign is that of the zero: nothing else in the step tells the two cells apart.
SIGNS = {
    "where": lambda x, zero: torch.where(x > x, x, zero),
    "masked_fill": lambda x, zero: x.masked_fill(x == x, zero),
    "full_like": lambda x, zero: torch.full_like(x, zero),
    "reciprocal": lambda x, zero: 1.0 / torch.full_like(x, zero),
    "sum": lambda x, zero: -torch.zeros_like(x) + zero,
    "difference": lambda x, zero: -torch.zeros_like(x) - zero,
    "of a value": lambda x, zero: torch.where(x > x, x, -0.0) + zero,
    "product": lambda x, zero: x * x * zero,
    "nan_to_num": lambda x, zero: torch.nan_to_num(torch.log(-1.0 - x * x), zero, 1.0, -1.0),
    "clamp": lambda x, zero: torch.clamp(x * x, max=zero),
    "copysign": lambda x, zero: torch.copysign(x, zero),
}


def make(zero, signed=None):
    @recollect.cell(gates="a", states="h")
    def step(inp, rec, prev):
        x, h = torch.tanh(inp.a + rec.a), 0.5 * prev.h
        for place, value in enumerate(signed or SIGNS.values()):  # whichever sign is wrong, the sum is another
            h = h + 0.5**place * x * torch.copysign(torch.ones_like(x), value(x, zero))
        return h

    return step


def forget(monkeypatch):
    monkeypatch.setattr(kernels, "_CACHE", {})
    forget_problems()
    for cached in (make_plan, partials, node_gradients):
        cached.cache_clear()


def trained(cell, backend):
    """What a layer computes, and all its gradients."""
    torch.manual_seed(0)
    layer, x = nn.Recurrent(cell, 3, 5), torch.randn(4, 2, 3, requires_grad=True)
    with recollect.set_backend(backend):
        y, h = layer(x)
        (y.square().sum() + h.sum()).backward()
    return [y.detach(), h.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


def test_kernels_equal_the_reference_in_both_orders_and_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("RECOLLECT_CACHE_DIR", str(tmp_path / "kernels"))
    results = []
    for order in ((0.0, -0.0), (-0.0, 0.0)):  # compiled, and then from the disk
        forget(monkeypatch)
        for zero in order:
            cell = make(zero)
            found, expected = trained(cell, "llvm"), trained(cell, "reference")
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs)
            results.append(found[0])
    assert not torch.allclose(results[0], results[1]), "the sign makes a difference"
    assert torch.equal(results[0], results[3])
    assert len(list((tmp_path / "kernels").iterdir())) == 4


@pytest.mark.parametrize("order", [(0.0, -0.0), (-0.0, 0.0)], ids=str)
@pytest.mark.parametrize("signed", SIGNS.values(), ids=SIGNS.keys())
def test_graphs_derived_from_a_step_keep_the_sign(signed, order, monkeypatch):
    forget(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    leaves = {name: torch.randn(4, dtype=torch.float64, generator=generator) for name in ("inp.a", "rec.a", "prev.h")}
    for zero in order:
        cell = make(zero, (signed,))
        inp = leaves["inp.a"].clone().requires_grad_()
        (new,) = cell(cell.Shares(inp), cell.Shares(leaves["rec.a"]), cell.States(leaves["prev.h"]))
        (expected,) = torch.autograd.grad(new.sum(), inp)
        graph = cell.graph
        place = next(place for place, node in enumerate(graph.nodes) if node.attr == "inp.a")
        derivative = partials(graph).evaluate(leaves, TorchTarget())["h/inp.a"]
        gradient = node_gradients(graph, (place,)).evaluate(leaves | {"grad.h": torch.ones(4)}, TorchTarget())
        torch.testing.assert_close(derivative, expected)
        torch.testing.assert_close(gradient[str(place)], expected)
        plan, given = make_plan(graph, cell.gates, cell.states, ()), leaves | {"pre.a": inp + leaves["rec.a"]}
        for forward in (plan.forward, *cut(plan.forward).graphs):
            given |= forward.evaluate(given, TorchTarget())
        torch.testing.assert_close(given["next.h"], new)


def test_names_that_the_author_gave_decide_which_node_is_a_gate():
    """Two cells of one content share kernels on disk, but what is looked at in them is by their own names."""

    def step(first, second):
        source = (
            f"def step(inp, rec, prev):\n    {first} = torch.sigmoid(inp.a + rec.a)\n"
            f"    {second} = torch.tanh({first})\n    return {second}"
        )
        scope = {"torch": torch}
        exec(source, scope)
        return recollect.cell(gates="a", states="h")(scope["step"])

    cells = [step("a", "b"), step("b", "a")]
    assert cells[0].graph.key == cells[1].graph.key
    plans = [kernels.kernels_for(cell.graph, cell.gates, cell.states, (), "float32", Variant()).plan for cell in cells]
    assert plans[0].activations != plans[1].activations
