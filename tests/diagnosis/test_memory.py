"""The reach of an input, against closed forms and against loops that replace inputs one by one."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import recollect
from recollect.diagnosis import memory_horizon
from recollect.diagnosis.memory import interventions
from recollect.errors import InputError


@recollect.cell(gates="a", states="h")
def linear(inp, rec, prev):
    return inp.a + rec.a


def linear_layer(W_hh, W_ih):
    layer = recollect.nn.Recurrent(linear, 1, len(W_hh), bias=False, dtype=torch.float64)
    layer.weight_hh_l0.data, layer.weight_ih_l0.data = W_hh.double(), W_ih.double()
    return layer


def signs(*shape, seed=0):
    """Inputs of two kinds only, so that a replacement is known: the other one."""
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


def test_of_a_linear_cell_both_curves_are_powers_of_its_radius():
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    W_ih = torch.randn(6, 1, dtype=torch.float64)
    found = memory_horizon(linear_layer(0.9 * Q, W_ih), signs(60, 3, 1))
    size = W_ih.norm().item()
    for reach, factor in ((found.by_gradient, 1), (found.by_intervention, 2)):
        np.testing.assert_array_equal(reach.lags, np.arange(60))
        np.testing.assert_allclose(reach.curve, factor * size * 0.9 ** np.arange(60), rtol=1e-9)
        assert (reach.horizon, reach.censored, reach.quartiles) == (44, False, (44, 44, 44))  # 0.9 ** 43 > 0.01
        assert reach.horizons.tolist() == [44, 44, 44]
    assert found.memory_horizon == found.gradient_horizon == 44
    assert "No, for this model and these data: of 60 steps, inputs of the last 44" in str(found)
    assert memory_horizon(linear_layer(0.9 * Q, W_ih), signs(60, 3, 1), threshold=0.5).memory_horizon == 7
    endless = memory_horizon(linear_layer(1.1 * Q, W_ih), signs(60, 3, 1))
    assert endless.by_gradient.censored
    assert endless.by_intervention.censored_rows.all()
    assert "No, not for these data: an input 59 steps back" in str(endless)


class Late(nn.Module):
    """Ignores the last two inputs, and keeps the three before them."""

    def __init__(self):
        super().__init__()
        self.rnn = linear_layer(torch.diag(torch.ones(2), -1), torch.eye(3)[:, :1])

    def forward(self, x):
        y, _ = self.rnn(x)
        return torch.cat([y.new_zeros(2, *y.shape[1:]), y[:-2]])


def test_what_keeps_three_inputs_has_a_horizon_of_three():
    x = torch.randn(30, 4, 1, dtype=torch.float64)
    found = memory_horizon(Late().rnn, x)
    late = memory_horizon(Late(), x)
    for reach in (found.by_gradient, found.by_intervention):
        assert reach.horizon == 3
        assert (reach.curve[:3] > 0.1).all()
        assert (reach.curve[3:] == 0).all()
        assert reach.quartiles == (3, 3, 3)
    assert "Yes, for this model and these data: of 30 steps, inputs of the last 3" in str(found)
    for reach in (late.by_gradient, late.by_intervention):
        assert (reach.curve[:2] == 0).all()
        assert reach.horizon == 5


def test_a_model_that_reads_nothing_has_no_memory():
    found = memory_horizon(linear_layer(torch.eye(2), torch.zeros(2, 1)), torch.randn(9, 2, 1))
    assert found.memory_horizon == found.gradient_horizon == 0
    assert "has none" in str(found)


class Reader(nn.Module):
    """Scores of a torch.nn layer's last outputs; the layer knows nothing of lengths."""

    def __init__(self, kind, outputs):
        super().__init__()
        self.rnn = kind(1, 5, batch_first=True)
        self.head = nn.Linear(5, outputs)

    def forward(self, x):
        return self.head(self.rnn(x)[0]), "something else"


@pytest.mark.parametrize("lengths", [None, [4, 9, 7]])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_both_curves_are_those_of_naive_loops(kind, lengths):
    torch.manual_seed(1)
    model, x = Reader(kind, 3), signs(3, 9, 1)
    found = memory_horizon(model, x.float(), lengths=lengths)
    twin = copy.deepcopy(model).double()
    steps = lengths or [9, 9, 9]

    def last(row, given):
        return twin(given[None, : steps[row]])[0][0, -1]

    moved, slopes = np.full((3, 9), np.nan), np.full((3, 9), np.nan)
    for row in range(3):
        before = last(row, x[row]).detach()
        (jacobian,) = torch.autograd.functional.jacobian(lambda given, row=row: (last(row, given),), x[row])
        for lag in range(steps[row]):
            other = x[row].clone()
            other[steps[row] - 1 - lag] *= -1
            moved[row, lag] = (last(row, other) - before).norm().item()
            slopes[row, lag] = jacobian[:, steps[row] - 1 - lag].norm().item()
    for reach, wanted in ((found.by_intervention, moved), (found.by_gradient, slopes)):
        np.testing.assert_allclose(reach.curve, np.sqrt(np.nanmean(wanted**2, axis=0)), rtol=1e-9, atol=1e-15)
        for row in range(3):
            own = wanted[row, : steps[row]]
            assert reach.horizons[row] == np.flatnonzero(own >= 0.01 * own.max())[-1] + 1
            assert reach.censored_rows[row] == (reach.horizons[row] == steps[row])
        assert reach.quartiles == tuple(np.quantile(reach.horizons, [0.25, 0.5, 0.75]))
    assert found.notes == []


def test_replacements_are_other_inputs_that_occur():
    torch.manual_seed(2)
    x = torch.randint(0, 4, (7, 3, 1)).double()
    layer = linear_layer(torch.eye(1), torch.eye(1))  # h_n is the sum of all inputs
    lengths = torch.tensor([7, 5, 0])
    with torch.no_grad():
        twin = interventions.Twin(layer, x, lengths)
        said = interventions.answer(twin)
        sequences = interventions.Sequences(twin.x, twin.calls)
        moved = interventions.changes(twin, sequences, said, np.arange(7), 200, 0, lambda _: None)
    assert moved.shape == (200, 3, 7)
    assert np.isnan(moved[:, 2]).all()
    assert np.isnan(moved[:, 1, 5:]).all()
    seen = {float(each) for row in range(2) for each in x[: lengths[row], row]}
    for row in range(2):
        for lag in range(int(lengths[row])):
            own = float(x[lengths[row] - 1 - lag, row])
            assert set(moved[:, row, lag]) == {abs(other - own) for other in seen - {own}}
    # Even where nearly all are the same, another one is found.
    x = torch.zeros(500, 1, 1)
    x[3] = 1.0
    rare = memory_horizon(layer, x, samples=1, lags=[0, 400])
    np.testing.assert_allclose(rare.by_intervention.curve, 1.0)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(2, 3)
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x, lengths=None, *, scale=1.0):
        e = self.embedding(x)
        if lengths is not None:
            e = pack_padded_sequence(e, torch.as_tensor(lengths), batch_first=True, enforce_sorted=False)
        y, _ = self.rnn(input=e)
        return scale * (pad_packed_sequence(y, batch_first=True)[0] if lengths is not None else y)


@pytest.mark.parametrize("lengths", [None, [3, 6, 5]])
def test_tokens_are_replaced_and_their_vectors_derived(lengths):
    torch.manual_seed(3)
    model, x = Words(), torch.randint(0, 2, (3, 8))
    steps = lengths or [8, 8, 8]
    found = memory_horizon(model, x if lengths is None else (x, torch.tensor(lengths)))
    assert found.steps == max(steps)
    (note,) = found.notes
    assert "gradient is that of the input of rnn" in note
    twin, moved, slopes = copy.deepcopy(model).double(), np.full((3, 8), np.nan), np.full((3, 8), np.nan)
    for row, length in enumerate(steps):
        e = twin.embedding(x[row, :length]).detach()
        jacobian = torch.autograd.functional.jacobian(lambda e: twin.rnn(e[None])[0][0, -1], e)
        slopes[row, :length] = jacobian.norm(dim=(0, 2)).flip(0)
        for lag in range(length):
            other = x[row, :length].clone()
            other[-1 - lag] = 1 - other[-1 - lag]
            moved[row, lag] = (twin(other[None])[0, -1] - twin(x[row, :length][None])[0, -1]).norm().item()
    for reach, wanted in ((found.by_intervention, moved), (found.by_gradient, slopes)):
        wanted = np.sqrt(np.nanmean(wanted[:, : max(steps)] ** 2, axis=0))
        np.testing.assert_allclose(reach.curve, wanted, rtol=1e-8, atol=1e-15)


def test_layouts_say_the_same():
    torch.manual_seed(4)
    layer, x, lengths = nn.LSTM(1, 4), signs(7, 3, 1), [5, 7, 2]
    first = nn.LSTM(1, 4, batch_first=True)
    first.load_state_dict(layer.state_dict())
    whole = memory_horizon(layer, x, lengths=lengths)
    packed = pack_padded_sequence(x.float(), torch.tensor(lengths), enforce_sorted=False)
    rows = [memory_horizon(layer, x[:length, row], samples=2) for row, length in enumerate(lengths[:2])]
    padding = torch.arange(7)[:, None, None] >= torch.tensor(lengths)[:, None]
    for each in (
        memory_horizon(layer, packed),
        memory_horizon(first, x.transpose(0, 1), lengths=lengths),
        memory_horizon(layer, (x, (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))), lengths=lengths),
        memory_horizon(layer, x.masked_fill(padding, torch.nan), lengths=lengths),
    ):
        for a, b in ((whole.by_gradient, each.by_gradient), (whole.by_intervention, each.by_intervention)):
            np.testing.assert_allclose(a.curve, b.curve, rtol=1e-10)
            np.testing.assert_array_equal(a.horizons, b.horizons)
    for row, each in enumerate(rows):
        assert each.by_gradient.horizon == whole.by_gradient.horizons[row]
        assert each.by_intervention.horizon == whole.by_intervention.horizons[row]


def test_permuting_rows_permutes_their_horizons():
    torch.manual_seed(5)
    layer, x, order = nn.GRU(1, 4), signs(20, 4, 1), [2, 0, 3, 1]
    x[-3:, 1] = x[-1, 1]
    a, b = memory_horizon(layer, x), memory_horizon(layer, x[:, order])
    for one, other in ((a.by_gradient, b.by_gradient), (a.by_intervention, b.by_intervention)):
        np.testing.assert_array_equal(one.horizons[order], other.horizons)
        np.testing.assert_allclose(one.curve, other.curve, rtol=1e-10)


def test_a_seed_repeats_whatever_fits_into_a_run(monkeypatch):
    layer, x = nn.GRU(2, 4), torch.randn(100, 3, 2)
    a, b, other = (memory_horizon(layer, x, seed=seed).by_intervention for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.curve, b.curve)
    assert not np.array_equal(a.curve, other.curve)
    monkeypatch.setattr(interventions, "_AT_ONCE", 1)
    np.testing.assert_allclose(memory_horizon(layer, x, seed=1).by_intervention.curve, a.curve, rtol=1e-6, atol=1e-14)
    assert len(a.lags) <= 41
    assert (a.lags[0], a.lags[1], a.lags[-1]) == (0, 1, 99)
    few = memory_horizon(layer, x, lags=[5, 0], samples=2)
    assert few.by_intervention.lags.tolist() == [0, 5]
    assert len(few.by_gradient.lags) == 100
    assert "2 of them" in str(few)


def test_a_wide_answer_is_followed_in_random_directions():
    torch.manual_seed(6)
    layer = linear_layer(0.8 * torch.linalg.qr(torch.randn(80, 80)).Q, torch.ones(80, 1))
    curve = memory_horizon(layer, torch.randn(40, 2, 1), samples=1).by_gradient.curve
    exact = 80**0.5 * 0.8 ** np.arange(40)
    np.testing.assert_allclose(curve, exact, rtol=0.5)
    assert abs(np.mean(curve**2 / exact**2) - 1) < 0.1


class FixedBatch(nn.Module):
    """A model that takes no batch but of two rows."""

    def __init__(self):
        super().__init__()
        self.rnn = recollect.nn.GRU(1, 3)

    def forward(self, x):
        return self.rnn(x, torch.zeros(1, 2, 3))[0]


class Translator(nn.Module):
    """Reads with one layer and writes with another, of other steps."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.GRU(1, 3, batch_first=True), nn.GRU(1, 3, batch_first=True)

    def forward(self, x):
        _, state = self.encoder(x)
        return self.decoder(torch.zeros(len(x), 4, 1), state)[0]


def test_models_with_shapes_of_their_own():
    torch.manual_seed(7)
    model, x = FixedBatch(), signs(12, 2, 1)
    a, b = memory_horizon(model, x, samples=1), memory_horizon(model.rnn, x, samples=1)
    np.testing.assert_allclose(a.by_intervention.curve, b.by_intervention.curve, rtol=1e-12)
    found = memory_horizon(Translator(), signs(5, 11, 1), samples=1)
    assert len(found.by_gradient.curve) == len(found.by_intervention.curve) == 11
    assert found.by_gradient.curve[0] > 0
    both = memory_horizon(nn.GRU(1, 3, bidirectional=True), x)
    assert both.memory_horizon == 12  # the reverse direction ends at the first step
    assert "from its end" in both.notes[0]


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 3)

    def forward(self, x):
        return self.rnn(x)[0].detach()


def test_without_a_gradient_only_interventions_are_left():
    found = memory_horizon(Detached(), torch.randn(9, 2, 1))
    assert found.gradient_horizon is found.by_gradient is None
    assert "no gradient passes" in found.notes[0]
    assert "gradient  " not in str(found)
    assert found.memory_horizon > 0


def test_the_model_is_left_alone():
    model, x = nn.Sequential(nn.LSTM(2, 3)).train(), torch.randn(6, 2, 2)
    before, given = copy.deepcopy(model.state_dict()), x.clone()

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = model, nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.inner(x.mul_(2))[0])  # in place, on its copy

    outer = First()
    random = torch.get_rng_state()
    with torch.inference_mode():
        memory_horizon(outer, x)
    assert model.training
    assert torch.equal(x, given)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in outer.parameters())
    assert torch.equal(random, torch.get_rng_state())


class Odd(nn.Module):
    """Models that cannot be answered for."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.kept, self.rnn = kind, 0.0, nn.GRU(1, 3)

    def forward(self, x):
        if self.kind == "shorter":
            x = x[::2]
        y, _ = self.rnn(x)
        self.kept += 1.0
        return {
            "noise": y + torch.randn_like(y), "state": y + self.kept, "classes": y.argmax(-1), "mean": y.mean(),
            "infinite": y / 0.0, "shorter": y, "turned": y[-1].T,
        }[self.kind]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("noise", "does not repeat its answer"),
        ("state", "does not repeat its answer"),
        ("classes", "floating-point"),
        ("mean", "rows of the batch apart"),
        ("turned", "rows of the batch apart"),
        ("infinite", "output is not finite"),
        ("shorter", "axes of x are rows and steps"),
    ],
)
def test_models_that_cannot_be_answered_for(kind, message):
    with pytest.raises(InputError, match=message):
        memory_horizon(Odd(kind), torch.randn(8, 2, 1))


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (torch.ones(8, 2, 1), {}, "all inputs are the same"),
        (torch.randn(8, 2, 1), {"samples": 0}, "samples"),
        (torch.randn(8, 2, 1), {"threshold": 0.0}, "threshold"),
        (torch.randn(8, 2, 1), {"lags": [8]}, "0 to 7"),
        (torch.randn(8, 2, 1), {"lengths": [0, 0]}, "no row has a valid step"),
        (torch.full((8, 2, 1), torch.nan), {}, "not finite"),
    ],
)
def test_what_cannot_be_answered_says_why(x, arguments, message):
    with pytest.raises(InputError, match=message):
        memory_horizon(nn.GRU(1, 3), x, **arguments)
