"""What a probe measures is so, it changes nothing, and between the steps that it probes nothing is attached."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import recollect
from recollect.diagnosis import Probe, diagnose
from recollect.engine import dispatch
from recollect.errors import InputError, NotYetError
from recollect.training import Observer, clip_by_global_norm, tbptt, train
from tolerances import assert_bits

mse = nn.functional.mse_loss
STEPS, BATCH, INPUTS, HIDDEN = 7, 4, 2, 3


class Model(nn.Module):
    """A recurrent layer, and a linear one on all of its outputs."""

    def __init__(self, layer=recollect.nn.LSTM, dtype=torch.float64, **options):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = layer(INPUTS, HIDDEN, dtype=dtype, **options)
        self.head = nn.Linear(HIDDEN * (2 if self.rnn.bidirectional else 1), 1, dtype=dtype)

    def forward(self, x, lengths=None):
        return self.head(self.rnn(x, lengths=lengths)[0])


def batches(count=1, dtype=torch.float64, rows=BATCH, steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(steps, rows, INPUTS, generator=generator, dtype=dtype),
            torch.randn(steps, rows, 1, generator=generator, dtype=dtype),
        )
        for _ in range(count)
    ]


def probed(model, x, y, lengths=None, loss=mse, lr=0.1, max_norm=0.05):
    """A probe that has seen one step of gradient descent, and what clipping said of it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with Probe(model) as probe:
        loss(model(x, lengths) if lengths is not None else model(x), y).backward()
        clipped = clip_by_global_norm(model.parameters(), max_norm)
        optimizer.step()
        probe.on_step(0, 1.0, clipped)
    return probe, clipped


def squares(output, target):
    """A loss that diagnose takes as it is."""
    return (output - target).square().sum()


def attached(model):
    return [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]


# What is measured -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["llvm", "reference"])
@pytest.mark.parametrize("lengths", [None, (3, 7, 2, 5)], ids=["dense", "lengths"])
@pytest.mark.parametrize(
    ("layer", "options"),
    [(recollect.nn.LSTM, {"num_layers": 2, "bidirectional": True}), (recollect.nn.GRU, {}), (recollect.nn.RNN, {})],
    ids=["lstm", "gru", "rnn"],
)
def test_curves_are_those_of_a_diagnosis(layer, options, lengths, backend):
    model, [(x, y)] = Model(layer, **options), batches()
    lengths = None if lengths is None else torch.tensor(lengths)

    diagnosis = diagnose(model, x, y, squares, lengths=lengths)
    with recollect.set_backend(backend):
        probe, _ = probed(model, x, y, lengths, squares)
    found = {
        f"{name}.{state}": curve
        for name, layer in probe.steps[0].layers.items()
        for state, curve in layer.grad_norm_by_lag.items()
    }
    assert list(found) == list(diagnosis.curves)
    for name, curve in found.items():
        assert curve == pytest.approx(diagnosis.curves[name], rel=1e-11), name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [(7, 7, 7, 7), (3, 7, 0, 5)], ids=["dense", "lengths"])
def test_norms_and_gates_are_those_of_a_loop_over_time(lengths, reverse):
    """With at most 8 rows the gates are measured in all of them."""
    model, [(x, y)] = Model(bidirectional=True), batches()
    own = {name.removesuffix("_reverse"): each.detach() for name, each in model.rnn.named_parameters()
           if name.endswith("_reverse") == reverse}  # fmt: skip
    norms = {state: [[] for _ in range(STEPS)] for state in "hc"}
    gates = {gate: [[] for _ in range(STEPS)] for gate in "ifgo"}
    for row, length in enumerate(lengths):
        h = c = torch.zeros(HIDDEN, dtype=torch.float64)
        for t in reversed(range(length)) if reverse else range(length):
            preact = own["weight_ih_l0"] @ x[t, row] + own["bias_ih_l0"] + own["weight_hh_l0"] @ h + own["bias_hh_l0"]
            i, f, g, o = preact.chunk(4)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g
            h = o * c.tanh()
            for name, values in zip("ifgo", (i, f, g.abs(), o), strict=True):
                gates[name][t].append(values.mean().item())
            for name, values in (("h", h), ("c", c)):
                norms[name][t].append(values.square().sum().item())
    probe, _ = probed(model, x, y, torch.tensor(lengths))
    layer = probe.steps[0].layers["rnn.l0_reverse" if reverse else "rnn.l0"]
    for state, found in norms.items():
        expected = [(sum(each) / len(each)) ** 0.5 for each in found]
        assert layer.state_norms[state] == pytest.approx(expected, rel=1e-12)
    for gate, found in gates.items():
        assert layer.gates[gate].openness == pytest.approx([sum(each) / len(each) for each in found], rel=1e-12)
        assert layer.gates[gate].kind == ("tanh" if gate == "g" else "sigmoid")


def test_saturated_is_what_has_next_to_no_derivative_left():
    model, [(x, y)] = Model(), batches()
    with torch.no_grad():
        for name, bias in (("i", 9.0), ("f", -9.0), ("g", 9.0), ("o", 0.0)):
            place = "ifgo".index(name) * HIDDEN
            model.rnn.weight_ih_l0[place : place + HIDDEN] *= 0.1
            model.rnn.bias_ih_l0[place : place + HIDDEN] = bias
    probe, _ = probed(model, x, y)
    gates = probe.steps[0].layers["rnn.l0"].gates
    assert {name: (gate.low, gate.high) for name, gate in gates.items()} == {
        "i": (0.0, 1.0), "f": (1.0, 0.0), "g": (0.0, 1.0), "o": (0.0, 0.0),
    }  # fmt: skip


def test_of_many_rows_a_few_stand_for_all_gates():
    model, [(x, y)] = Model(), batches(rows=40)
    probe, _ = probed(model, x, y)
    few = probe.steps[0].layers["rnn.l0"].gates["i"].openness
    sample = torch.linspace(0, 39, 8).round().long()
    probe, _ = probed(Model(), x[:, sample], y[:, sample])
    assert few == pytest.approx(probe.steps[0].layers["rnn.l0"].gates["i"].openness, rel=1e-12)


def test_a_gradient_whose_square_is_no_float32_is_measured():
    """A linear recurrence in float32 that halves the gradient at each step: 0.5 ** 90 = 8e-28."""
    model, steps = Model(recollect.nn.RNN, torch.float32, nonlinearity="relu"), 91
    with torch.no_grad():
        for each in model.parameters():
            each.zero_()
        model.rnn.weight_hh_l0.copy_(0.5 * torch.eye(HIDDEN))
        model.rnn.bias_ih_l0.fill_(1.0)
        model.head.weight.fill_(1.0)
    [(x, y)] = batches(dtype=torch.float32, steps=steps)
    probe, _ = probed(model, x, y, loss=lambda output, target: output[-1].sum())
    curve = probe.steps[0].layers["rnn.l0"].grad_norm_by_lag["h"]
    assert curve == pytest.approx([3**0.5 * 0.5**lag for lag in range(steps)], rel=1e-6)


def test_updates_and_gradients_are_those_of_gradient_descent():
    model, [(x, y)] = Model(), batches()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    probe, clipped = probed(model, x, y, lr=0.1)
    [step] = probe.steps
    assert clipped.scale < 1
    for name, each in model.named_parameters():
        assert each.grad is not None
        norm = each.grad.norm().item()
        assert step.gradient_norms[name] == pytest.approx(norm)
        assert step.updates[name] == pytest.approx(0.1 * norm / before[name].norm().item())
    total = sum(norm**2 for norm in step.gradient_norms.values()) ** 0.5
    assert total == pytest.approx(probe.norms[0] * probe.scales[0]) == pytest.approx(0.05)
    assert probe.norms == [clipped.norm]


def test_the_update_of_a_weight_that_was_zero():
    model, [(x, y)] = Model(), batches()
    with torch.no_grad():
        model.rnn.bias_ih_l0.zero_()
        model.rnn.bias_hh_l0.zero_()
    model.rnn.bias_hh_l0.requires_grad_(False)
    probe, _ = probed(model, x, y)
    assert probe.steps[0].updates["rnn.bias_ih_l0"] == torch.inf
    assert "rnn.bias_hh_l0" not in probe.steps[0].updates


def test_a_projected_layer_is_probed_on_the_reference():
    model, [(x, y)] = Model(), batches()
    model.rnn, model.head = recollect.nn.LSTM(INPUTS, HIDDEN, proj_size=2).double(), nn.Linear(2, 1).double()
    diagnosis = diagnose(model, x, y, squares)
    probe, _ = probed(model, x, y, loss=squares)
    for state, curve in probe.steps[0].layers["rnn.l0"].grad_norm_by_lag.items():
        assert curve == pytest.approx(diagnosis.curves[f"rnn.l0.{state}"], rel=1e-11)


def test_a_layer_is_shown_as_it_ran_last():
    model, [(x, y)] = Model(), batches()
    parts = list(tbptt(x, y, 3, dim=0))
    with Probe(model) as probe:
        for part, target in parts:
            mse(model(part), target).backward()
        probe.on_step(0, 1.0, clip_by_global_norm(model.parameters(), 1.0))
    layer = probe.steps[0].layers["rnn.l0"]
    assert layer.calls == len(parts) == 3
    alone, _ = probed(Model(), *parts[-1])
    expected = alone.steps[0].layers["rnn.l0"]
    assert layer.grad_norm_by_lag["h"] == pytest.approx(expected.grad_norm_by_lag["h"])
    assert len(layer.state_norms["h"]) == 1


def test_a_layer_that_no_gradient_reaches_is_left_out():
    model, [(x, y)] = Model(), batches()
    model.add_module("other", recollect.nn.GRU(INPUTS, HIDDEN).double())
    with Probe(model) as probe:
        model.other(x)
        mse(model(x), y).backward()
        probe.on_step(0, 1.0, clip_by_global_norm(model.parameters(), 1.0))
    assert list(probe.steps[0].layers) == ["rnn.l0"]
    assert "other.weight_hh_l0" not in probe.steps[0].gradient_norms


# When it looks ---------------------------------------------------------------------------------------


class Attached(Observer):
    """Notes what is attached to a model after each step, which is so during the next one."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def on_step(self, step, loss, clipped):
        self.seen.append(bool(attached(self.model)))


def run(model, probe=None, epochs=2, count=6, observers=(), **arguments):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    observers = [*(() if probe is None else (probe,)), *observers]
    return train(
        model, batches(count), loss=mse, optimizer=optimizer, epochs=epochs, observers=observers, max_norm=0.3, seed=0,
        **arguments,
    )  # fmt: skip


def test_every_so_many_steps_and_nothing_is_attached_between():
    model = Model()
    probe, after = Probe(model, every=5), Attached(model)
    assert not attached(model)
    history = run(model, probe, observers=[after], validation=batches(1))
    assert [(each.index, each.epoch, each.step) for each in probe.steps] == [(0, 0, 0), (5, 0, 5), (10, 1, 4)]
    assert after.seen == [step % 5 == 0 for step in range(1, 13)]
    assert not attached(model)
    assert len(probe.losses) == len(probe.norms) == len(probe.scales) == 12
    assert probe.clip_fraction == pytest.approx(sum(history.clipped_fraction) / 2)
    assert probe.clip_fraction > 0
    assert all(each.layers["rnn.l0"].calls == 1 for each in probe.steps)  # validation does not count


def test_only_recurrent_layers_have_hooks():
    model = Model()
    with Probe(model):
        assert attached(model) == [model.rnn]
    assert not attached(model)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.5, "zoneout": 0.2}], ids=["plain", "noise"])
def test_a_run_that_is_probed_is_the_same_to_the_bit(options):
    alone, watched = Model(dtype=torch.float64, **options), Model(dtype=torch.float64, **options)
    run(alone)
    run(watched, Probe(watched, every=2))
    for actual, expected in zip(watched.parameters(), alone.parameters(), strict=True):
        assert_bits(actual, expected)


def test_with_several_batches_to_a_step_the_last_one_is_shown():
    model = Model()
    probe = Probe(model, every=2)
    run(model, probe, epochs=1, accumulate=3)
    assert [(each.index, each.layers["rnn.l0"].calls) for each in probe.steps] == [(0, 3)]


def test_nothing_stays_attached_after_an_error():
    model, [(x, y)] = Model(), batches()
    with pytest.raises(RuntimeError, match="stop"), Probe(model):
        raise RuntimeError("stop")
    assert not attached(model)
    with Probe(model) as probe:
        with pytest.raises(InputError):
            model(x[:, :, :1])
        assert dispatch._attention.get() is None
        mse(model(x), y).backward()
        probe.on_step(0, 1.0, clip_by_global_norm(model.parameters(), 1.0))
    assert probe.steps[0].layers["rnn.l0"].calls == 1


def test_copies_of_a_model_that_is_being_probed_are_not():
    model, [(x, y)] = Model(), batches()
    with Probe(model) as probe:
        twin, file = copy.deepcopy(model), io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for each in (twin, torch.load(file, weights_only=False)):
            mse(each(x), y).backward()
        assert diagnose(model, x, y).curves
        probe.on_step(0, 1.0, clip_by_global_norm(model.parameters(), 1.0))
    assert not probe.steps[0].layers
    assert "no gradient was seen to reach a recurrent layer" in str(probe)


# A run that is cut off, and one that goes wrong ------------------------------------------------------


class Killed(BaseException):
    """Nothing in the loop can be prepared for it."""


class KillAt(Observer):
    def __init__(self, at):
        self.at, self.steps = at, 0

    def on_step(self, step, loss, clipped):
        self.steps += 1
        if self.steps == self.at:
            raise Killed


@pytest.mark.parametrize("same", [True, False], ids=["the same probe", "a new one"])
def test_a_run_that_is_resumed_goes_on(tmp_path, same):
    """Checkpoints are made at the ends of epochs: with 6 steps in each, steps 6 and 7 are made again."""
    whole = Probe(model := Model(), every=4)
    run(model, whole, epochs=3)
    path = tmp_path / "checkpoint"
    probe = Probe(model := Model(), every=4)
    with pytest.raises(Killed):
        run(model, probe, epochs=3, checkpoint=path, observers=[KillAt(8)])
    assert not attached(model)
    assert len(probe.losses) == 8
    if not same:
        probe = Probe(model := Model(), every=4)
    run(model, probe, epochs=3, checkpoint=path)
    first = 0 if same else 6
    assert probe.losses == whole.losses[first:]
    assert probe.norms == whole.norms[first:]
    places = [(each.index, each.epoch, each.step) for each in probe.steps]
    if same:
        assert places == [(each.index, each.epoch, each.step) for each in whole.steps]
        for actual, expected in zip(probe.steps, whole.steps, strict=True):
            assert actual.updates == expected.updates
    else:
        assert places == [(0, 1, 0), (4, 1, 4), (8, 2, 2)]


def test_a_new_run_begins_anew():
    probe = Probe(model := Model(), every=4)
    run(model, probe)
    run(model, probe, epochs=1)
    assert len(probe.losses) == 6
    assert [each.index for each in probe.steps] == [0, 4]


def test_the_first_step_that_is_not_finite_is_looked_into():
    model, data = Model(dropout=0.5, num_layers=2), batches(6)
    for number in (2, 4):
        data[number][0][3, 1] = torch.nan
    probe = Probe(model, every=3)
    train(model, data, loss=mse, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), epochs=1, observers=[probe])
    assert probe.non_finite is not None
    assert (probe.non_finite.epoch, probe.non_finite.step) == (0, 2)
    culprit = probe.non_finite.culprit
    assert culprit is not None
    assert "input x" in culprit.what
    assert (culprit.place.step, culprit.place.row) == (3, 1)
    assert probe.scales.count(0.0) == 2
    assert "time step 3, row 1" in str(probe)
    assert [each.index for each in probe.steps] == [0, 3]
    assert probe.steps[1].layers["rnn.l0"].calls == 1  # to look into step 2 was not part of step 3


def test_in_a_loop_of_your_own_it_is_only_known_when():
    model, [(x, y)] = Model(), batches()
    with Probe(model) as probe:
        mse(model(x * torch.inf), y).backward()
        probe.on_step(5, torch.nan, clip_by_global_norm(model.parameters(), 1.0))
    assert probe.non_finite is not None
    assert (probe.non_finite.step, probe.non_finite.culprit) == (5, None)
    assert "epoch 1, step 6" in str(probe)


# What it says -----------------------------------------------------------------------------------------


def test_a_summary_names_every_state_and_gate():
    model = Model(bidirectional=True)
    probe = Probe(model)
    assert str(probe) == "0 steps, 0 of them probed; 0% clipped"
    run(model, probe)
    text = str(probe)
    for part in (
        "12 steps, 2 of them probed",
        "epoch 2, step 5",
        "rnn.l0.h",
        "rnn.l0_reverse.c",
        "g 0.",
        "update to weight",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("model", "every", "error", "words"),
    [
        (lambda: nn.Sequential(nn.LSTM(2, 3)), 10, InputError, r"0 is a torch\.nn\.LSTM.*recollect\.convert\(model\)"),
        (lambda: nn.Linear(2, 3), 10, InputError, "no recurrent layer"),
        (lambda: "model", 10, InputError, "given: str"),
        (lambda: Model(checkpoint=4), 10, NotYetError, "rnn has checkpoint=4"),
        (Model, 0, InputError, "every=0"),
        (Model, 2.5, InputError, "every=2.5"),
    ],
)
def test_what_cannot_be_probed_is_refused(model, every, error, words):
    with pytest.raises(error, match=words):
        Probe(model(), every)
