"""The llvm backend over random calls: it equals the reference in float64, and keeps what every recurrence keeps."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recollect
from recollect import cells, nn
from recollect.engine import calls
from recollect.engine.llvm.division import Division
from tolerances import GRADIENT, VALUE, assert_bits, assert_equal

# Examples repeat from run to run: what fails once, fails always.
settings.register_profile(
    "engine", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
ENGINE = settings.get_profile("engine")


class Kind(NamedTuple):
    """Calls that the same few kernels serve: to compile one takes longer than to run a hundred examples."""

    dtype: torch.dtype
    inputs: tuple[int, int]
    hidden: tuple[int, ...]
    resets: bool = False
    noise: bool = False
    all_states: bool = False


NARROW = Kind(torch.float64, (1, 4), (1, 2, 3))
RESETTING = NARROW._replace(resets=True)
NOISY = NARROW._replace(resets=True, noise=True)
KINDS = [
    NARROW,
    NOISY,
    Kind(torch.float64, (17, 20), (17,)),
    Kind(torch.float32, (17, 20), (17,)),
    Kind(torch.float32, (1, 8), (1, 3, 8), resets=True, all_states=True),
]
DIVISIONS = [
    Division(1, False), Division(2, False), Division(3, False), Division(2, True), Division(3, True),
    Division(3, True, rows_back=True),
]  # fmt: skip
LOSSES = ["y", "final", "both"]


@dataclass(frozen=True)
class Case:
    """A layer, its input and what a call asks for."""

    kind: Kind
    steps: int
    batch: int
    inputs: int
    hidden: int
    layers: int
    both_ways: bool
    bias: bool
    lengths: tuple[int, ...] | None
    given_states: bool
    division: Division
    loss: str
    seed: int

    @property
    def runs(self) -> int:
        return self.layers * (1 + self.both_ways)

    def layer(self, cell):
        torch.manual_seed(self.seed)
        probability = 0.3 if self.kind.noise else 0.0
        return nn.Recurrent(
            cell, self.inputs, self.hidden, self.layers, bias=self.bias, bidirectional=self.both_ways,
            recurrent_dropout=probability, zoneout=probability, dtype=self.kind.dtype,
        )  # fmt: skip

    def call(self, cell):
        """``(x, states, resets)``; padding is NaN."""
        torch.manual_seed(self.seed + 1)
        x = torch.randn(self.steps, self.batch, self.inputs, dtype=self.kind.dtype)
        if self.lengths is not None:
            x[~valid(self)] = torch.nan
        shape = (self.runs, self.batch, self.hidden)
        # Away from 0, because a cell may divide by a state.
        drawn = [torch.rand(shape, dtype=self.kind.dtype) + 0.5 for _ in cell.states]
        resets = torch.rand(self.steps, self.batch) < 0.25 if self.kind.resets else None
        return x, drawn if self.given_states else None, resets


def valid(case):
    lengths = [case.steps] * case.batch if case.lengths is None else case.lengths
    return torch.arange(case.steps).unsqueeze(1) < torch.tensor(lengths)


@st.composite
def cases(draw, kind=None, **fixed):
    kind = kind or draw(st.sampled_from(KINDS))
    hidden, both_ways = draw(st.sampled_from(kind.hidden)), draw(st.booleans())
    steps, batch = draw(st.integers(1, 12)), draw(st.integers(1, 12) | st.integers(13, 40))
    lengths = st.lists(st.integers(0, steps), min_size=batch, max_size=batch).map(tuple)
    case = Case(
        kind, steps, batch,
        inputs=draw(st.integers(*kind.inputs)),
        hidden=hidden,
        # A second layer reads no more than the same kernels can.
        layers=draw(st.integers(1, 2)) if hidden * (1 + both_ways) <= kind.inputs[1] else 1,
        both_ways=both_ways,
        bias=draw(st.booleans()),
        lengths=draw(st.none() | lengths),
        given_states=draw(st.booleans()),
        division=draw(st.sampled_from(DIVISIONS)),
        loss=draw(st.sampled_from(LOSSES)),
        seed=draw(st.integers(0, 2**16)),
    )  # fmt: skip
    return replace(case, **fixed)


def listed(value):
    return list(value) if isinstance(value, tuple) else [value]


def run(layer, x, states=None, *, loss="both", division=None, backend="llvm", noise=None, all_states=False, **options):
    """Values and gradients by name; gradients of zeros where there are none.

    ``noise`` is drawn from the seed of 0, or given, since the generator's numbers differ by dtype.
    """
    x = x.clone().requires_grad_()
    states = None if states is None else [each.clone().requires_grad_() for each in states]
    layer.zero_grad()
    with pytest.MonkeyPatch.context() as patch, recollect.set_backend(backend):
        if division:
            patch.setattr(calls, "divide", lambda *_: division)
        if noise is not None:
            patch.setattr(layer, "_noise", lambda *_: noise)
        torch.manual_seed(0)
        y, final, *every = layer(x, states, return_states=all_states, **options)
        values = {
            "y": y,
            **{f"final {name}": each for name, each in zip(layer.cell.states, listed(final), strict=True)},
        }
        for each in every:
            values |= {f"all of {name}": s for name, s in zip(layer.cell.states, listed(each), strict=True)}
        generator = torch.Generator().manual_seed(7)
        total = x.new_zeros(())
        for name, each in values.items():
            weight = torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype)
            if loss == "both" or name.startswith("final") == (loss == "final"):
                total = total + (each * weight).sum()
        total.backward()
    leaves = {"x": x, **dict(layer.named_parameters())}
    if states is not None:
        leaves |= {f"initial {name}": each for name, each in zip(layer.cell.states, states, strict=True)}
    gradients = {
        name: torch.zeros_like(each) if each.grad is None else each.grad.clone() for name, each in leaves.items()
    }
    return {name: each.detach() for name, each in values.items()}, gradients


def run_case(case, layer, x, states, resets, **options):
    own = {"lengths": case.lengths, "loss": case.loss, "division": case.division, "all_states": case.kind.all_states}
    return run(layer, x, states, resets=resets, **own | options)


def assert_same(mine, true, assertion, *more, only=lambda name: True):
    assert mine.keys() == true.keys()
    for name, each in mine.items():
        if only(name):
            assertion(each, true[name], *more, what=name)


@pytest.mark.parametrize("name", cells.__all__)
@settings(ENGINE, max_examples=12)
@given(case=cases())
def test_llvm_equals_the_reference(name, case):
    cell = cells.by_name(name)
    layer, (x, states, resets) = case.layer(cell), case.call(cell)
    torch.manual_seed(case.seed)
    noise = layer._noise(x, case.batch)
    values, gradients = run_case(case, layer, x, states, resets, noise=noise)
    truth = case.layer(cell).double()
    true_states = None if states is None else [each.double() for each in states]
    true_noise = [each.double() for each in noise]
    true_values, true_gradients = run_case(
        case, truth, x.double(), true_states, resets, noise=true_noise, backend="reference"
    )
    assert_same(values, true_values, assert_equal, VALUE)
    assert_same(gradients, true_gradients, assert_equal, GRADIENT)


names = st.sampled_from(["lstm", "gru", "slstm", "peephole_lstm"])


@settings(ENGINE, max_examples=10)
@given(names, cases(NARROW, both_ways=False), st.integers(1, 5))
def test_a_sequence_in_chunks_equals_the_whole(name, case, size):
    """Outputs to the bit; gradients, which flow from chunk to chunk through the states, are sums in another order."""
    cell = cells.by_name(name)
    layer, (x, states, _) = case.layer(cell), case.call(cell)
    x = x.nan_to_num()  # read by the loss below
    values, gradients = run_case(case, layer, x, states, None, loss="y")

    leaf, state = x.clone().requires_grad_(), states
    lengths = torch.tensor([case.steps] * case.batch if case.lengths is None else case.lengths)
    layer.zero_grad()
    parts = []
    with recollect.set_backend("llvm"):
        for start in range(0, case.steps, size):
            chunk = leaf[start : start + size]
            y, state = layer(chunk, state, lengths=(lengths - start).clamp(0, len(chunk)))
            parts.append(y)
    y = torch.cat(parts)
    assert_bits(y, values["y"], "y")
    for state_name, each in zip(cell.states, listed(state), strict=True):
        assert_bits(each, values[f"final {state_name}"], state_name)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    (y * weight.to(y.dtype)).sum().backward()
    assert_equal(leaf.grad, gradients["x"], GRADIENT)
    for parameter_name, each in layer.named_parameters():
        assert_equal(each.grad, gradients[parameter_name], GRADIENT, parameter_name)


@settings(ENGINE, max_examples=10)
@given(names, cases(RESETTING, loss="y"), st.randoms(use_true_random=False))
def test_permuting_the_batch_commutes(name, case, random):
    """Outputs and the gradients of each row to the bit; parameters' are sums over rows."""
    cell = cells.by_name(name)
    layer, (x, states, resets) = case.layer(cell), case.call(cell)
    order = random.sample(range(case.batch), case.batch)
    permuted = replace(case, lengths=None if case.lengths is None else tuple(case.lengths[row] for row in order))

    def results(case, x, states, resets, back):
        # The loss weighs all rows alike, so that it is the same for either order.
        leaf = x.clone().requires_grad_()
        with recollect.set_backend("llvm"):
            y, final = layer(leaf, states, lengths=case.lengths, resets=resets)
        found = torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])
        return [each[:, back] for each in (y, *listed(final), found[0])], found[1:]

    rows, sums = results(case, x, states, resets, range(case.batch))
    moved = None if states is None else [each[:, order] for each in states]
    back = [order.index(row) for row in range(case.batch)]
    other_rows, other_sums = results(permuted, x[:, order], moved, resets[:, order], back)
    for mine, true in zip(other_rows, rows, strict=True):
        assert_bits(mine, true)
    for mine, true in zip(other_sums, sums, strict=True):
        assert_equal(mine, true, GRADIENT)


@settings(ENGINE, max_examples=10)
@given(names, st.data())
def test_padding_never_changes_a_bit(name, data):
    case = data.draw(cases(NOISY).filter(lambda case: case.lengths is not None))
    cell = cells.by_name(name)
    layer, (x, states, resets) = case.layer(cell), case.call(cell)
    padding = ~valid(case)
    values, gradients = run_case(case, layer, x, states, resets)
    other_values, other_gradients = run_case(case, layer, x.nan_to_num(1e30), states, resets | padding)
    assert_same(other_values, values, assert_bits)
    assert_same(other_gradients, gradients, assert_bits)
    assert (values["y"][padding] == 0).all()
    assert (gradients["x"][padding] == 0).all()


@settings(ENGINE, max_examples=10)
@given(names, cases(RESETTING, lengths=None, loss="y"), st.data())
def test_a_reset_begins_a_new_sequence(name, case, data):
    """Of two layers forward in time, or of one in both directions, which parts the sequence one step later."""
    if case.both_ways:
        case = replace(case, layers=1)
    at = data.draw(st.integers(0, case.steps - 1))
    cell = cells.by_name(name)
    layer, (x, states, _) = case.layer(cell), case.call(cell)
    resets = torch.zeros(case.steps, case.batch, dtype=torch.bool)
    resets[at] = True
    values, gradients = run_case(case, layer, x, states, resets)

    leaf = x.clone().requires_grad_()
    own = None if states is None else [each.clone().requires_grad_() for each in states]
    layer.zero_grad()

    def apart(cut, units):
        with recollect.set_backend("llvm"):
            parts = [layer(part, own)[0] for part in (leaf[:cut], leaf[cut:]) if len(part)]
        return torch.cat(parts)[..., units]

    halves = [apart(at, slice(0, case.hidden))]
    if case.both_ways:
        halves.append(apart(at + 1, slice(case.hidden, None)))
    y = torch.cat(halves, 2)
    assert_bits(y, values["y"])
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    (y * weight).sum().backward()
    assert_equal(leaf.grad, gradients["x"], GRADIENT)
    for parameter_name, each in layer.named_parameters():
        assert_equal(each.grad, gradients[parameter_name], GRADIENT, parameter_name)
    for state_name, each in zip(cell.states, own or (), strict=own is not None):
        assert_equal(each.grad, gradients[f"initial {state_name}"], GRADIENT, state_name)


@settings(ENGINE, max_examples=10)
@given(names, cases(NARROW, layers=1, both_ways=True, loss="y"))
def test_reverse_equals_flipped(name, case):
    """Each row is flipped within its own length."""
    cell = cells.by_name(name)
    layer, (x, states, _) = case.layer(cell), case.call(cell)
    one_way = replace(case, both_ways=False).layer(cell)
    reverse = {each: layer.state_dict()[f"{each}_reverse"] for each in one_way.state_dict()}
    one_way.load_state_dict(reverse)
    lengths = torch.tensor([case.steps] * case.batch if case.lengths is None else case.lengths)
    step = torch.arange(case.steps).unsqueeze(1)
    place = torch.where(step < lengths, lengths - 1 - step, step)

    def flipped(each):
        return each.gather(0, place.unsqueeze(2).expand_as(each))

    def results(layer, x, states, restored):
        leaf = x.clone().requires_grad_()
        with recollect.set_backend("llvm"):
            y, final = layer(leaf, states, lengths=case.lengths)
        y = restored(y)
        parameters = [each for name, each in layer.named_parameters() if layer is one_way or "reverse" in name]
        gradients = torch.autograd.grad(y.square().sum(), [leaf, *parameters])
        return [y, *(each[-1] for each in listed(final))], gradients

    values, (dx, *gradients) = results(layer, x, states, lambda y: y[..., case.hidden :])
    own = None if states is None else [each[1:] for each in states]
    other_values, (other_dx, *other_gradients) = results(one_way, flipped(x), own, flipped)
    for mine, true in zip(other_values, values, strict=True):
        assert_bits(mine, true)
    assert_equal(flipped(other_dx), dx, GRADIENT)
    for mine, true in zip(other_gradients, gradients, strict=True):
        assert_equal(mine, true, GRADIENT)


@settings(ENGINE, max_examples=10)
@given(names, cases(NOISY))
def test_no_division_changes_a_bit(name, case):
    cell = cells.by_name(name)
    layer, (x, states, resets) = case.layer(cell), case.call(cell)
    values, gradients = run_case(case, layer, x, states, resets, division=DIVISIONS[0])
    for division in DIVISIONS[1:]:
        other_values, other_gradients = run_case(case, layer, x, states, resets, division=division)
        assert_same(other_values, values, assert_bits)
        assert_same(other_gradients, gradients, assert_bits)


@settings(ENGINE, max_examples=10)
@given(names, cases(NOISY))
def test_save_and_load_is_identity(name, case):
    cell = cells.by_name(name)
    layer, (x, states, resets) = case.layer(cell), case.call(cell)
    with tempfile.TemporaryDirectory() as folder:
        recollect.save(layer, Path(folder) / "layer")
        loaded = recollect.load(Path(folder) / "layer")
    assert_same(dict(loaded.state_dict()), dict(layer.state_dict()), assert_bits)
    values, gradients = run_case(case, layer, x, states, resets)
    other_values, other_gradients = run_case(case, loaded, x, states, resets)
    assert_same(other_values, values, assert_bits)
    assert_same(other_gradients, gradients, assert_bits)
