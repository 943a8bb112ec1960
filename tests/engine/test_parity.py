"""Every cell on the llvm backend equals the plain loop in float64: outputs, final states and every gradient."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import recollect
from recollect import cells, nn
from tolerances import GRADIENT, VALUE, assert_equal

DTYPES = [torch.float32, torch.float64]


@dataclass(frozen=True)
class Case:
    """Sizes and options of a layer and its input."""

    steps: int
    batch: int
    inputs: int
    hidden: int
    layers: int = 1
    both_ways: bool = False
    bias: bool = True
    lengths: tuple[int, ...] | None = None


# Two hidden sizes beside 1, one below every vector width and one above, and inputs to match: kernels are made
# anew for others, which takes longer than all that is computed here.
CASES = {
    "all one": Case(1, 1, 1, 1),
    "one step": Case(1, 9, 2, 3),
    "one row": Case(17, 1, 2, 3),
    "many rows, no bias": Case(3, 20, 3, 3, layers=2, bias=False),
    "two layers, both ways": Case(5, 3, 2, 3, layers=2, both_ways=True),
    "lengths": Case(6, 6, 3, 3, lengths=(3, 0, 6, 1, 0, 5)),
    "no row reaches the last step": Case(9, 3, 2, 3, both_ways=True, lengths=(2, 4, 1)),
    "odd and wide": Case(4, 7, 63, 33),
    "wide, lengths, both ways": Case(7, 5, 63, 33, both_ways=True, lengths=(2, 7, 0, 7, 1)),
}


def make(cell, case, dtype, seed=0):
    """A layer, its input and its initial states."""
    torch.manual_seed(seed)
    layer = nn.Recurrent(
        cell, case.inputs, case.hidden, case.layers, bias=case.bias, bidirectional=case.both_ways, dtype=dtype
    )
    x = torch.randn(case.steps, case.batch, case.inputs, dtype=dtype)
    shape = (case.layers * (1 + case.both_ways), case.batch, case.hidden)
    # Away from 0, because a cell may divide by a state.
    states = tuple(torch.rand(shape, dtype=dtype) + 0.5 for _ in cell.states)
    return layer, x, states


def evaluate(layer, x, states, lengths, loss, backend):
    """Values and gradients by name; ``loss`` says which results enter it ("y" and names of states)."""
    x = x.clone().requires_grad_()
    states = tuple(each.clone().requires_grad_() for each in states)
    layer.zero_grad()
    with recollect.set_backend(backend):
        y, final = layer(x, states, lengths=lengths)
        results = {"y": y, **dict(zip(layer.cell.states, final if isinstance(final, tuple) else (final,), strict=True))}
        generator = torch.Generator().manual_seed(7)
        weights = {
            name: torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype)
            for name, each in results.items()
        }
        sum((results[name] * weights[name]).sum() for name in loss).backward()
    values = {name: each.detach() for name, each in results.items()}
    inputs = {"x": x, **{f"initial {name}": each for name, each in zip(layer.cell.states, states, strict=True)}}
    gradients = {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone()
        for name, each in (inputs | dict(layer.named_parameters())).items()
    }
    return values, gradients


def compare(cell, case, dtype, losses, seed=0):
    layer, x, states = make(cell, case, dtype, seed)
    truth = make(cell, case, dtype, seed)[0].double()
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    for loss in losses:
        values, gradients = evaluate(layer, x, states, lengths, loss, "llvm")
        true_values, true_gradients = evaluate(
            truth, x.double(), tuple(each.double() for each in states), lengths, loss, "reference"
        )
        for name, each in values.items():
            assert_equal(each, true_values[name], VALUE, f"{name} with loss on {loss}:")
        for name, each in gradients.items():
            assert_equal(each, true_gradients[name], GRADIENT, f"gradient of {name} with loss on {loss}:")
    with torch.no_grad(), recollect.set_backend("llvm"):
        y, final = layer(x, states if len(states) > 1 else states[0], lengths=lengths)
    final = final if isinstance(final, tuple) else (final,)
    for name, each in zip(("y", *cell.states), (y, *final), strict=True):
        assert_equal(each, true_values[name], VALUE, f"{name} without gradient:")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cells.__all__)
@pytest.mark.parametrize("case", CASES)
def test_llvm_equals_the_reference(name, dtype, case):
    cell = cells.by_name(name)
    compare(cell, CASES[case], dtype, [("y",), cell.states, ("y", *cell.states)])


@pytest.mark.parametrize("name", ["lstm", "slstm", "gru"])
def test_loss_on_one_final_state_alone(name):
    cell = cells.by_name(name)
    compare(cell, CASES["lengths"], torch.float64, [(state,) for state in cell.states])


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_every_batch_size(name):
    for batch in range(1, 21):
        compare(cells.by_name(name), Case(2, batch, 3, 3), torch.float32, [("y",)], seed=batch)


@pytest.mark.parametrize(("inputs", "hidden"), [(15, 16), (17, 15), (16, 17), (32, 48), (65, 63), (64, 64), (33, 130)])
def test_sizes_around_the_width_of_a_vector(inputs, hidden):
    compare(cells.rnn_tanh, Case(3, 5, inputs, hidden), torch.float32, [("y", "h")])


@pytest.mark.parametrize("name", ["lstm", "mgu"])
def test_nothing_but_padding(name):
    cell = cells.by_name(name)
    compare(
        cell, Case(4, 3, 2, 5, both_ways=True, lengths=(0, 0, 0)), torch.float64, [cell.states, ("y", *cell.states)]
    )


@pytest.mark.parametrize("lengths", [None, (300, 12, 0, 299, 157)], ids=["dense", "lengths"])
@pytest.mark.parametrize("name", ["lstm", "gru", "peephole_lstm"])
def test_more_rows_than_the_backward_pass_takes_at_once(name, lengths):
    cell = cells.by_name(name)
    compare(cell, Case(300, 5, 3, 3, both_ways=True, lengths=lengths), torch.float64, [("y", *cell.states)])


def test_gates_with_one_share_and_states_that_only_pass_through():
    @recollect.cell(gates="a b k", states="h old fixed", vectors="v w")
    def odd(inp, rec, prev, vec):
        h = torch.tanh(inp.a * vec.v + rec.b * vec.w) + inp.k - rec.k * prev.old
        return h, prev.h, prev.fixed

    for case in ("odd and wide", "wide, lengths, both ways"):
        compare(odd, CASES[case], torch.float32, [("y",), ("old",), ("fixed",), ("y", "h", "old", "fixed")])


def test_a_state_that_does_not_depend_on_anything():
    @recollect.cell(gates="a", states="h one")
    def constant(inp, rec, prev):
        return inp.a + rec.a * 0.5, torch.ones_like(prev.one)

    compare(constant, CASES["lengths"], torch.float64, [("y",), ("y", "h")])
