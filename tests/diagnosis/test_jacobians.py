"""Jacobians of steps and of their products, against float64 autograd and closed forms."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import recollect
from recollect import cells
from recollect.diagnosis import jacobian_spectrum
from recollect.diagnosis.jacobians.steps import StepJacobians, chosen
from recollect.errors import InputError

CELLS = [cells.by_name(name) for name in cells.__all__]


@recollect.cell(gates="a", states="h")
def linear(inp, rec, prev):
    return inp.a + rec.a


@recollect.cell(gates="f n", states="h s", vectors="v")
def mixed(inp, rec, prev, vec):
    """Constant derivatives, derivatives by vectors alone, and a state that nothing recurrent reaches."""
    s = vec.v * prev.s + inp.n
    return torch.tanh(rec.n) + 0.5 * prev.h * torch.sigmoid(inp.f) + s, s


def step_of(layer, label, x, states):
    """One step of one row, written out: joint state [D] -> joint state [D]."""
    cell = layer.cell
    get = {
        k: getattr(layer, f"{k}_{label}", None) for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    }
    sizes = [layer.proj_size or layer.hidden_size, *[layer.hidden_size] * (len(cell.states) - 1)]
    prev = states.split(sizes)
    inp, rec = x @ get["weight_ih"].T, prev[0] @ get["weight_hh"].T
    if layer.bias:
        inp, rec = inp + get["bias_ih"], rec + get["bias_hh"]
    gates = len(cell.gates)
    vec = cell.Vectors(*[getattr(layer, f"vector_{name}_{label}") for name in cell.vectors])
    new = cell(cell.Shares(*inp.chunk(gates)), cell.Shares(*rec.chunk(gates)), cell.States(*prev), vec)
    if layer.proj_size:
        new = (new[0] @ get["weight_hr"].T, *new[1:])
    return torch.cat([k * old + (1 - k) * s for k, old, s in zip(layer.zoneout, prev, new, strict=True)])


@pytest.mark.parametrize(
    ("cell", "options"),
    [(cell, {}) for cell in (*CELLS, linear, mixed)]
    + [(cells.lstm, {"proj_size": 3}), (cells.lstm, {"zoneout": [0.3, 0.0], "proj_size": 2})]
    + [(cells.gru, {"zoneout": 0.2, "bias": False}), (cells.slstm, {"bidirectional": True})],
    ids=lambda each: getattr(each, "name", None) or str(each),
)
def test_a_steps_jacobian_is_autograds(cell, options):
    torch.manual_seed(0)
    layer = recollect.nn.Recurrent(cell, 3, 4, dtype=torch.float64, **options).eval()
    x, lengths = torch.randn(6, 3, 3, dtype=torch.float64), [2, 6, 5]
    for label in ["l0", "l0_reverse"][: 1 + layer.bidirectional]:
        unrolled, rows, within = chosen(layer, x, lengths, label, None, 8)
        assert rows.tolist() == [1, 2, 0]
        lags = np.arange(6)[:, None]
        jacobians = StepJacobians(unrolled, unrolled.places(within, np.minimum(lags, unrolled.lengths[within] - 1)))
        D, draw = sum(jacobians.sizes), torch.Generator().manual_seed(1)
        for lag in range(6):
            matrices = jacobians.matrix(lag)
            active = [place for place, row in enumerate(rows) if lengths[row] > lag]
            for place in active:
                row = rows[place]
                where = unrolled.places(within[[place]], lag)[0]
                t = lag if unrolled.reverse else lengths[row] - 1 - lag
                before = torch.cat([state[where] for state in unrolled.before])
                wanted = torch.func.jacrev(lambda s, t=t, row=row, label=label: step_of(layer, label, x[t, row], s))(
                    before
                )
                torch.testing.assert_close(matrices[place], wanted, rtol=1e-11, atol=1e-13)
            rows_left = len(active)
            v, w = (torch.randn(rows_left, 2, D, generator=draw, dtype=torch.float64) for _ in range(2))
            torch.testing.assert_close(jacobians.jvp(lag, v), v @ matrices[:rows_left].mT)
            torch.testing.assert_close(jacobians.vjp(lag, w), w @ matrices[:rows_left])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_singular_values_are_those_of_autograds_jacobian(kind):
    torch.manual_seed(1)
    layer, x = kind(2, 5, num_layers=2), torch.randn(9, 3, 2)
    found = jacobian_spectrum(layer, x, lengths=[9, 4, 7], layer="l1", lags=[1, 3, 6, 8])
    assert found.layer == "l1"
    assert found.rows.tolist() == [0, 2, 1]
    ours = recollect.convert(copy.deepcopy(layer)).double()
    for place, row in enumerate(found.rows):
        length = [9, 4, 7][row]
        below = x[:length, row].double()
        with recollect.set_backend("reference"):
            first = recollect.nn.Recurrent(ours.cell, 2, 5, dtype=torch.float64)
            first.load_state_dict({k: v for k, v in ours.state_dict().items() if k.endswith("l0")})
            below = first(below)[0].detach()
        D = 5 * len(ours.cell.states)
        states = [torch.zeros(D, dtype=torch.float64)]
        for t in range(length):
            states.append(step_of(ours, "l1", below[t], states[-1]).detach())
        for column, k in enumerate(found.lags):
            if k >= length:
                assert np.isnan(found.log_singular_values[place, column]).all()
                continue

            def onwards(s, k=k, length=length, below=below):
                for t in range(length - k, length):
                    s = step_of(ours, "l1", below[t], s)
                return s

            block = torch.func.jacrev(onwards)(states[length - k])[:5, :5]
            wanted = torch.linalg.svdvals(block).detach()
            np.testing.assert_allclose(np.exp(found.log_singular_values[place, column]), wanted, rtol=1e-8)
    whole = found.log_singular_values[:, 1]  # lag 3, which every row has
    np.testing.assert_allclose(found.singular_values[1], np.exp(whole.mean(0)), rtol=1e-12)
    np.testing.assert_allclose(found.spread[1], whole.std(0), rtol=1e-12)


@pytest.mark.parametrize("rho", [0.5, 1.5])
def test_products_of_any_size_are_measured(rho):
    layer = recollect.nn.Recurrent(linear, 1, 4, dtype=torch.float64)
    layer.weight_hh_l0.data = rho * torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    x = torch.zeros(1500 if rho > 1 else 4000, 1, 1)
    found = jacobian_spectrum(layer, x, progress=False)
    assert len(found.lags) <= 24
    assert (found.lags[0], found.lags[-1]) == (1, len(x) - 1)
    wanted = np.broadcast_to(found.lags[:, None] * np.log(rho), (len(found.lags), 4))
    np.testing.assert_allclose(found.log_singular_values[0], wanted, rtol=1e-10)
    assert found.growth_per_step == pytest.approx(rho)
    assert f"{rho:.4g} per step" in str(found)


def test_a_matrix_that_is_not_normal_first_grows():
    layer = recollect.nn.Recurrent(linear, 1, 2, dtype=torch.float64)
    W = layer.weight_hh_l0.data = torch.tensor([[0.9, 5.0], [0.0, 0.8]], dtype=torch.float64)
    found = jacobian_spectrum(layer, torch.zeros(80, 1, 1))
    for k, values in zip(found.lags, found.singular_values, strict=True):
        np.testing.assert_allclose(values, torch.linalg.svdvals(torch.linalg.matrix_power(W, int(k))), rtol=1e-9)
    assert found.singular_values[:, 0].max() > 5 > 1 > found.singular_values[-1, 0]


class Restarts(nn.Module):
    """A layer whose rows are reset before step 4."""

    def __init__(self):
        super().__init__()
        self.rnn = recollect.nn.LSTM(2, 3)

    def forward(self, x):
        resets = torch.zeros(x.shape[:2], dtype=torch.bool)
        resets[4] = True
        return self.rnn(x, resets=resets)[0]


def test_nothing_passes_a_reset():
    found = jacobian_spectrum(Restarts(), torch.randn(9, 2, 2), lags=[4, 5, 8])
    assert (found.singular_values[0] > 0).all()  # from step 4, the first after the reset
    assert (found.singular_values[1:] == 0).all()
    assert np.isneginf(found.log_singular_values[:, 1:]).all()
    assert (found.spread[1:] == 0).all()
    assert found.growth_per_step == 0.0
    assert "0 of 3 directions" in str(found)


def test_rows_may_be_chosen_and_packed():
    torch.manual_seed(2)
    layer, x, lengths = nn.GRU(2, 3), torch.randn(8, 4, 2), [3, 8, 5, 0]
    whole = jacobian_spectrum(layer, x, lengths=lengths)
    assert whole.rows.tolist() == [1, 2, 0]
    packed = pack_padded_sequence(x[:, :3], torch.tensor(lengths[:3]), enforce_sorted=False)
    np.testing.assert_array_equal(jacobian_spectrum(layer, packed).log_singular_values, whole.log_singular_values)
    one = jacobian_spectrum(layer, x, lengths=lengths, rows=[2])
    np.testing.assert_allclose(one.log_singular_values[0], whole.log_singular_values[1, :4], rtol=1e-12)
    assert (one.spread == 0).all()


def test_the_model_is_left_alone():
    model, x = nn.LSTM(2, 3).train(), torch.randn(6, 2, 2)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        jacobian_spectrum(model, x)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


@recollect.cell(gates="a", states="h")
def root(inp, rec, prev):
    return torch.sqrt(prev.h) + inp.a + rec.a


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lags": [0]}, "lags from 0 to 0"),
        ({"lags": [6]}, "1 to 5"),
        ({"lags": [1.5]}, "whole numbers"),
        ({"rows": [2]}, "no such rows"),
        ({"rows": []}, "no such rows"),
        ({"layer": "l1"}, "no recurrent layer that ran fits"),
        ({"lengths": [1, 0]}, "at least two steps"),
        ({"lengths": [6, 1], "rows": [0, 1]}, "at least two steps"),
    ],
)
def test_what_cannot_be_answered_says_why(arguments, message):
    with pytest.raises(InputError, match=message):
        jacobian_spectrum(nn.GRU(2, 3), torch.randn(6, 2, 2), **arguments)


def test_numbers_that_are_not_finite_are_named():
    x = torch.randn(6, 2, 2)
    x[3] = torch.nan
    with pytest.raises(InputError, match=r"first state that is not finite is l0.h at step 3"):
        jacobian_spectrum(nn.GRU(2, 3), x)
    layer = recollect.nn.Recurrent(root, 2, 3, bias=False)
    with pytest.raises(InputError, match=r"dh/d prev.h of l0, 3 of"):
        jacobian_spectrum(layer, torch.zeros(2, 1, 2))
    with pytest.raises(InputError, match="no recurrent layer"):
        jacobian_spectrum(nn.Linear(2, 2), x)
