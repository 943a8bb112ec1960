"""A layer that is watched shows what the reference's own taps see, and computes every bit as one that is not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import recollect
from recollect import cells, nn
from recollect.engine import dispatch
from recollect.engine.llvm.kernels import Kernels
from recollect.engine.llvm.machine import host
from recollect.errors import NotYetError
from tolerances import GRADIENT, VALUE, assert_bits, assert_equal

STEPS, BATCH, INPUTS, HIDDEN = 6, 4, 2, 3
LENGTHS = (4, 0, 6, 1)


@dataclass(frozen=True)
class Case:
    """Options of a layer and of its call."""

    layer: tuple[tuple[str, object], ...] = ()
    lengths: tuple[int, ...] | None = None
    packed: bool = False
    resets: bool = False

    def make(self, cell, dtype=torch.float64):
        """A layer in training mode, its input and the keywords of a call."""
        torch.manual_seed(0)
        layer = nn.Recurrent(cell, INPUTS, HIDDEN, dtype=dtype, **dict(self.layer))
        x = torch.randn(STEPS, BATCH, INPUTS, dtype=dtype)
        x = x.transpose(0, 1).contiguous() if layer.batch_first else x
        keywords = {"lengths": torch.tensor(self.lengths)} if self.lengths and not self.packed else {}
        if self.resets:
            keywords["resets"] = torch.rand(x.shape[:2]) < 0.4
        if self.packed:
            x = pack_padded_sequence(x, torch.tensor(self.lengths), layer.batch_first, enforce_sorted=False)
        return layer, x, keywords


WIDE, ALL = "lengths, two layers, both ways", "everything"
CASES = {
    "dense": Case(),
    "batch_first, both ways": Case((("batch_first", True), ("bidirectional", True))),
    WIDE: Case((("num_layers", 2), ("bidirectional", True)), lengths=LENGTHS),
    "packed": Case(lengths=(4, 2, 6, 1), packed=True),
    "resets, both ways": Case((("bidirectional", True),), resets=True),
    ALL: Case(
        (("batch_first", True), ("bidirectional", True), ("num_layers", 2), ("zoneout", 0.3),
         ("recurrent_dropout", 0.5), ("dropout", 0.5)), lengths=LENGTHS, resets=True,
    ),
}  # fmt: skip


def run(layer, x, keywords, states, backend="llvm"):
    """The results of a call and the gradients of its parameters, from a loss on all results."""
    layer.zero_grad()
    torch.manual_seed(1)  # of the masks
    with recollect.set_backend(backend):
        y, final = layer(x, states, **keywords)
        results = [y.data if isinstance(y, torch.nn.utils.rnn.PackedSequence) else y]
        results += list(final) if isinstance(final, tuple) else [final]
        generator = torch.Generator().manual_seed(7)
        weights = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in results]
        sum((each * weight).sum() for each, weight in zip(results, weights, strict=True)).backward()
    return [each.detach() for each in results], [each.grad.clone() for each in layer.parameters()]


def watch(layer, x, keywords, states, backend="llvm"):
    seen = []
    with dispatch.watching(seen.append):
        found = run(layer, x, keywords, states, backend)
    return {each.label: each for each in seen}, found


def initial(layer, dtype=torch.float64):
    """Away from 0, because a cell may divide by a state."""
    shape = (layer.num_layers * (1 + layer.bidirectional), BATCH)
    sizes = layer._state_sizes().values()
    states = tuple(torch.rand(*shape, size, dtype=dtype) + 0.5 for size in sizes)
    return states if len(states) > 1 else states[0]


def tapped(layer, x, keywords, states):
    """What taps of the test's own see: by label and step the states that a step begins with, and dL/ds."""
    found = {}

    def listener(label):
        steps = found[label] = {}

        def tap(step):
            new = tuple(each.clone() for each in step.new)
            for each in new:
                each.retain_grad()
            steps[step.t] = ([each.detach() for each in step.prev], new)
            return new

        return tap

    with dispatch.listening(listener):
        run(layer, x, keywords, states, "reference")
    return {
        label: [
            [torch.cat([steps[t][0][place] for t in sorted(steps)]) for place in range(len(layer.cell.states))],
            [
                torch.cat([
                    torch.zeros_like(each) if each.grad is None else each.grad
                    for each in (steps[t][1][place] for t in sorted(steps))
                ])
                for place in range(len(layer.cell.states))
            ],
        ]
        for label, steps in found.items()
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["llvm", "reference"])
@pytest.mark.parametrize(
    ("name", "case"),
    [*(("lstm", case) for case in CASES), *((name, WIDE) for name in cells.__all__ if name != "lstm"), ("gru", ALL)],
)
def test_states_and_what_comes_back_to_them_are_those_of_the_taps(name, case, backend):
    layer, x, keywords = CASES[case].make(cells.by_name(name))
    states = initial(layer)
    seen, _ = watch(layer, x, keywords, states, backend)
    truth = tapped(layer, x, keywords, states)
    assert list(seen) == list(truth)
    for label, (before, gradients) in truth.items():
        for state, actual, expected in zip(layer.cell.states, seen[label].before, before, strict=True):
            assert_equal(actual, expected, VALUE, f"{label}.{state} before the steps:")
        for state, actual, expected in zip(layer.cell.states, seen[label].gradients, gradients, strict=True):
            assert_equal(actual, expected, GRADIENT, f"gradient of {label}.{state}:")


@pytest.mark.parametrize("backend", ["llvm", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_it_computes_every_bit_as_one_that_is_not_watched(case, backend):
    layer, x, keywords = CASES[case].make(cells.lstm, torch.float32)
    states = initial(layer, torch.float32)
    x = x.to(torch.float32)
    _, (results, gradients) = watch(layer, x, keywords, states, backend)
    expected_results, expected_gradients = run(layer, x, keywords, states, backend)
    for actual, expected in zip([*results, *gradients], [*expected_results, *expected_gradients], strict=True):
        assert_bits(actual, expected)


@pytest.mark.parametrize("sizes", [(100, 1, 64), (3, 1, 1024)], ids=["layers at the same time", "by units"])
def test_the_ways_in_which_threads_divide_a_layer_change_no_bit(sizes):
    steps, batch, hidden = sizes
    torch.manual_seed(0)
    torch.set_num_threads(2)
    layer, x = nn.LSTM(4, hidden, 2 if hidden < 1024 else 1), torch.randn(steps, batch, 4)
    seen, found = watch(layer, x, {}, None)
    for actual, expected in zip(chain(*found), chain(*run(layer, x, {}, None)), strict=True):
        assert_bits(actual, expected)
    truth = tapped(layer, x, {}, None)
    for label, (_, gradients) in truth.items():
        for actual, expected in zip(seen[label].gradients, gradients, strict=True):
            assert_equal(actual, expected, GRADIENT)


@pytest.mark.parametrize("backend", ["llvm", "reference"])
@pytest.mark.parametrize("name", cells.__all__)
def test_gates_are_what_the_step_computes(name, backend):
    """The gates of each cell, by its published equations, from the shares of the pre-activation."""
    layer, x, keywords = CASES[WIDE].make(cells.by_name(name))
    states = initial(layer)
    seen, _ = watch(layer, x, keywords, states, backend)
    shares = {}

    def listener(label):
        def tap(step):
            shares.setdefault(label, {})[step.t] = step
            return step.new

        return tap

    with dispatch.listening(listener):
        run(layer, x, keywords, states, "reference")
    for label, its in seen.items():
        steps = [shares[label][t] for t in sorted(shares[label])]
        rows = torch.tensor([0, 3, len(its.before[0]) - 1])
        for gate, values in _published(layer, label, steps).items():
            assert_equal(its.gates(rows)[gate], values.detach()[rows], VALUE, f"{label}.{gate}")
            assert_equal(its.gates(torch.arange(len(values)))[gate], values.detach(), VALUE, f"{label}.{gate}")


def _published(layer, label, steps):
    def total(gate, share="both"):
        place = layer.cell.gates.index(gate)
        inp, rec = (torch.cat([part[place] for part in parts]) for parts in
                    ([step.inp for step in steps], [step.rec for step in steps]))  # fmt: skip
        return inp + rec

    name, sigmoid, tanh = layer.cell.name, torch.sigmoid, torch.tanh
    if name in ("lstm", "cifg_lstm"):
        return {gate: (tanh if gate == "g" else sigmoid)(total(gate)) for gate in layer.cell.gates}
    if name == "peephole_lstm":
        c = torch.cat([step.prev[1] for step in steps])
        peeps = {gate: getattr(layer, f"vector_p_{gate}_{label}") * c for gate in "if"}
        return {"g": tanh(total("g")), **{gate: sigmoid(total(gate) + peep) for gate, peep in peeps.items()}}
    if name == "gru":
        return {gate: sigmoid(total(gate)) for gate in "rz"}
    if name == "mgu":
        return {"f": sigmoid(total("f"))}
    if name == "slstm":
        return {"g": tanh(total("g")), "o": sigmoid(total("o"))}
    return {"a": {"rnn_tanh": tanh, "rnn_relu": torch.relu}[name](total("a"))}


def test_the_final_states_of_rows_without_steps_are_their_initial_ones():
    layer, x, keywords = CASES[WIDE].make(cells.lstm)
    states = initial(layer)
    seen, _ = watch(layer, x, keywords, states)
    order = torch.tensor(LENGTHS).argsort(descending=True, stable=True)
    for place, label in enumerate(seen):
        for actual, expected in zip(seen[label].final, layer(x, states, **keywords)[1], strict=True):
            assert_bits(actual, expected[place][order])


def test_a_projected_layer_is_watched_on_the_reference():
    layer = nn.LSTM(INPUTS, HIDDEN, proj_size=2).double()
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    seen = []
    with dispatch.watching(seen.append):
        layer(x)[0].square().sum().backward()
    truth = tapped_loss(layer, x, lambda y: y.square().sum())
    assert [tuple(each.shape) for each in seen[0].gradients] == [(STEPS * BATCH, 2), (STEPS * BATCH, HIDDEN)]
    for actual, expected in zip(seen[0].gradients, truth, strict=True):
        assert_equal(actual, expected, GRADIENT)


def tapped_loss(layer, x, loss):
    kept = []

    def tap(step):
        kept.append(tuple(each.clone() for each in step.new))
        for each in kept[-1]:
            each.retain_grad()
        return kept[-1]

    with dispatch.listening(lambda label: tap):
        loss(layer(x)[0]).backward()
    return [
        torch.cat([torch.zeros_like(each) if each.grad is None else each.grad for each in parts])
        for parts in zip(*kept, strict=True)
    ]


def test_gradients_of_several_backward_passes_add_up():
    layer, x = nn.LSTM(INPUTS, HIDDEN).double(), torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    seen = []
    with dispatch.watching(seen.append):
        y, _ = layer(x)
    assert seen[0].gradients is None
    y.sum().backward(retain_graph=True)
    y.square().sum().backward()
    for actual, expected in zip(
        seen[0].gradients, tapped_loss(layer, x, lambda y: y.sum() + y.square().sum()), strict=True
    ):
        assert_equal(actual, expected, GRADIENT)


def test_a_backward_pass_that_is_differentiable_is_watched_too():
    layer, x = nn.LSTM(INPUTS, HIDDEN).double(), torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    seen = []
    with dispatch.watching(seen.append):
        y, _ = layer(x)
    torch.autograd.grad(y.square().sum(), list(layer.parameters()), create_graph=True)
    truth = tapped_loss(layer, x, lambda y: y.square().sum())
    for actual, expected in zip(seen[0].gradients, truth, strict=True):
        assert_equal(actual, expected, GRADIENT)


@pytest.mark.skipif(not host().bfloat16, reason="this machine does not multiply in bfloat16")
def test_products_in_bfloat16_are_watched():
    layer, x, keywords = CASES[WIDE].make(cells.lstm, torch.float32)
    recollect.set_precision("bfloat16")
    seen, found = watch(layer, x.float(), keywords, None)
    for actual, expected in zip(chain(*found), chain(*run(layer, x.float(), keywords, None)), strict=True):
        assert_bits(actual, expected)
    for label, (_, gradients) in tapped(layer, x.float(), keywords, None).items():
        for actual, expected in zip(seen[label].gradients, gradients, strict=True):
            assert (actual - expected).norm() <= 0.05 * expected.norm()


def test_memory_that_is_looked_at_is_lent_to_nobody_else():
    layer, x = nn.LSTM(INPUTS, HIDDEN), torch.randn(STEPS, BATCH, INPUTS)
    seen, _ = watch(layer, x, {}, None)
    tensors = [*seen["l0"].before, *seen["l0"].gradients]
    copies = [each.clone() for each in tensors]
    for _ in range(3):
        run(layer, torch.randn_like(x), {}, None)
    for actual, expected in zip(tensors, copies, strict=True):
        assert_bits(actual, expected)


def test_nobody_is_told_of_a_call_without_gradients():
    layer, x, seen = nn.LSTM(INPUTS, HIDDEN), torch.randn(STEPS, BATCH, INPUTS), []
    with dispatch.watching(seen.append):
        with torch.no_grad():
            layer(x)
        layer.requires_grad_(False)(x)
        layer.requires_grad_(True)(x, lengths=[0] * BATCH)
        with recollect.set_backend("reference"):
            torch.func.vmap(layer, in_dims=2)(x.unsqueeze(2).expand(-1, -1, 2, -1))
    assert not seen


def test_whoever_listens_goes_before_whoever_watches():
    layer, x, seen, heard = nn.LSTM(INPUTS, HIDDEN), torch.randn(STEPS, BATCH, INPUTS), [], []
    with dispatch.watching(seen.append), dispatch.listening(heard.append):
        layer(x)
    assert (seen, heard) == ([], ["l0"])


def test_a_layer_that_trains_in_segments_is_refused():
    layer = nn.LSTM(INPUTS, HIDDEN, checkpoint=2)
    with dispatch.watching(lambda seen: None), pytest.raises(NotYetError, match="checkpoint=None"):
        layer(torch.randn(STEPS, BATCH, INPUTS))


def test_a_call_that_is_not_watched_asks_for_no_kernel_that_is(monkeypatch):
    asked, own = [], Kernels.backward

    def backward(kernels, tiling, *, watched, **ways):
        asked.append(watched)
        return own(kernels, tiling, watched=watched, **ways)

    monkeypatch.setattr(Kernels, "backward", backward)
    layer = nn.LSTM(INPUTS, 7)  # a size of its own, whose kernels nobody has asked for
    x = torch.randn(STEPS, 5, INPUTS)
    layer(x)[0].sum().backward()
    assert asked == [False]
    with dispatch.watching(lambda seen: None):
        layer(x)[0].sum().backward()
    assert asked == [False, True]
    layer(x)[0].sum().backward()
    assert asked == [False, True]
