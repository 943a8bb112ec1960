"""Lyapunov exponents against closed forms and against plain QR of float64 autograd's Jacobians."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import recollect
from recollect import cells
from recollect.diagnosis import LyapunovSpectrum, lyapunov_spectrum
from recollect.errors import InputError


@recollect.cell(gates="a", states="h")
def linear(inp, rec, prev):
    return inp.a + rec.a


def linear_layer(W):
    layer = recollect.nn.Recurrent(linear, 1, len(W), bias=False, dtype=torch.float64)
    layer.weight_hh_l0.data = torch.as_tensor(W, dtype=torch.float64)
    return layer


@pytest.mark.parametrize("normal", [True, False])
def test_of_a_linear_cell_they_are_the_logarithms_of_the_eigenvalues(normal):
    rng = np.random.default_rng(0)
    moduli = np.array([1.2, 1.0, 0.8, 0.5, 0.1, 0.01])
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0] if normal else rng.standard_normal((6, 6))
    W = basis @ np.diag(moduli) @ np.linalg.inv(basis)
    found = lyapunov_spectrum(linear_layer(W), torch.zeros(900, 1, 1), warmup=300)
    np.testing.assert_allclose(found.exponents, np.log(moduli), atol=1e-10)
    assert (found.steps, found.warmup, found.size, found.layer) == (600, 300, 6, "l0")
    np.testing.assert_allclose(found.drift, 0, atol=1e-10)
    assert found.sum == pytest.approx(math.log(abs(np.linalg.det(W))))
    fewer = lyapunov_spectrum(linear_layer(W), torch.zeros(900, 1, 1), warmup=300, count=2, seed=7)
    np.testing.assert_allclose(fewer.exponents, np.log(moduli[:2]), atol=1e-10)


def test_a_pair_of_complex_eigenvalues_shares_its_modulus():
    W = np.zeros((3, 3))
    W[:2, :2] = 0.9 * np.array([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])
    W[2, 2] = 0.3
    basis = np.array([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0], [0.2, 0.0, 1.0]])
    found = lyapunov_spectrum(linear_layer(basis @ W @ np.linalg.inv(basis)), torch.zeros(3000, 1, 1))
    np.testing.assert_allclose(found.exponents, np.log([0.9, 0.9, 0.3]), atol=2e-3)  # an error like 1 / T


def test_a_scalar_network_at_its_fixed_point():
    layer = nn.RNN(1, 1, bias=False)
    layer.weight_hh_l0.data.fill_(1.5)
    layer.weight_ih_l0.data.fill_(1.0)
    h = 1.0
    for _ in range(500):
        h = math.tanh(1.5 * h + 0.25)
    found = lyapunov_spectrum(layer, torch.full((400, 1, 1), 0.25), warmup=100)
    assert found.exponents[0] == pytest.approx(math.log(1.5 * (1 - h * h)), abs=1e-12)


@pytest.mark.parametrize(
    "cell", [cells.lstm, cells.gru, cells.peephole_lstm, cells.mgu, cells.slstm], ids=lambda c: c.name
)
def test_they_are_those_of_autograds_jacobians(cell):
    torch.manual_seed(1)
    layer, x = recollect.nn.Recurrent(cell, 2, 3, dtype=torch.float64), torch.randn(40, 3, 2, dtype=torch.float64)
    lengths = torch.tensor([25, 40, 31])
    found = lyapunov_spectrum(layer, x, lengths=lengths, warmup=5, seed=3)
    assert found.rows.tolist() == [1, 2, 0]
    D = 3 * len(cell.states)
    start = torch.linalg.qr(
        torch.randn(D, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ).Q.numpy()
    vec = cell.Vectors(*[getattr(layer, f"vector_{name}_l0") for name in cell.vectors])

    def step(states, now):
        prev = cell.States(*states.chunk(len(cell.states)))
        inp = cell.Shares(*(layer.weight_ih_l0 @ now + layer.bias_ih_l0).chunk(len(cell.gates)))
        rec = cell.Shares(*(layer.weight_hh_l0 @ prev[0] + layer.bias_hh_l0).chunk(len(cell.gates)))
        return torch.cat(list(cell(inp, rec, prev, vec)))

    of_row, volumes = [], []
    for row, length in enumerate(lengths.tolist()):
        state, Q, logs, determinants = torch.zeros(D, dtype=torch.float64), start, [], []
        for t in range(length):
            J = torch.func.jacrev(step)(state, x[t, row]).detach().numpy()
            state = step(state, x[t, row]).detach()
            Q, R = np.linalg.qr(J @ Q)
            with np.errstate(divide="ignore"):
                logs.append(np.log(np.abs(np.diag(R))))
            determinants.append(abs(np.linalg.det(J)))
        of_row.append(np.mean(logs[5:], axis=0))
        volumes.append(determinants[5:])
    wanted = np.mean(of_row, axis=0)
    order = np.argsort(-wanted)
    alive = np.isfinite(found.exponents)
    if cell is cells.slstm:
        # A step that takes the input's branch of the maximum forgets how c, n and m shared their scale.
        assert alive.sum() >= 9
        assert (wanted[order][~alive] < -10).all()
        np.testing.assert_allclose(found.exponents[alive], wanted[order][alive], rtol=1e-6)
        return
    assert alive.all()
    np.testing.assert_allclose(found.exponents, wanted[order], rtol=1e-8)
    np.testing.assert_allclose(found.by_row, np.array(of_row)[[1, 2, 0]][:, order], rtol=1e-8)
    np.testing.assert_allclose(found.spread, np.std(of_row, axis=0)[order], rtol=1e-6)
    assert found.sum == pytest.approx(np.mean([np.log(each).mean() for each in volumes]))


def test_a_random_network_is_chaotic_above_the_gain_of_1():
    """H. Sompolinsky, A. Crisanti, H. J. Sommers, "Chaos in random neural networks" (1988)."""
    torch.manual_seed(2)
    layer = nn.RNN(1, 100, bias=False)
    coupling = torch.randn(100, 100) / 10
    x = torch.zeros(600, 1, 1)
    x[0] = 1.0
    layer.weight_hh_l0.data = 3.0 * coupling
    wild = lyapunov_spectrum(layer, x, count=40)
    assert wild.exponents[0] > 0.1
    assert 1 < wild.kaplan_yorke_dimension < 40
    assert "grow" in str(wild)
    layer.weight_hh_l0.data = 0.5 * coupling
    tame = lyapunov_spectrum(layer, x, count=1, warmup=100)
    assert tame.exponents[0] == pytest.approx(torch.linalg.eigvals(0.5 * coupling).abs().max().log().item(), abs=0.02)
    assert tame.kaplan_yorke_dimension == 0
    assert "fade" in str(tame)


def test_what_dies_at_once_has_no_finite_exponent():
    layer = nn.RNN(1, 4, nonlinearity="relu")
    layer.bias_ih_l0.data[:] = torch.tensor([-99.0, 9.0, 9.0, -99.0])
    layer.weight_hh_l0.data = 0.5 * torch.eye(4)
    found = lyapunov_spectrum(layer, torch.zeros(50, 2, 1))
    np.testing.assert_allclose(found.exponents[:2], math.log(0.5), atol=1e-12)
    assert np.isneginf(found.exponents[2:]).all()
    assert found.sum == -math.inf
    assert (found.spread == 0).all()
    layer.bias_ih_l0.data[:] = -99.0
    dead = lyapunov_spectrum(layer, torch.zeros(50, 2, 1))
    assert np.isneginf(dead.exponents).all()
    assert "at once" in str(dead)


def test_the_dimension_of_kaplan_and_yorke():
    def of(*exponents, size=4):
        each = np.array(exponents)
        return LyapunovSpectrum("l0", each, each, each, each[None], np.array([0]), 9, 0, size).kaplan_yorke_dimension

    assert of(0.5, 0.1, -0.8, -2.0) == pytest.approx(2 + 0.6 / 0.8)
    assert of(-0.1, -0.2, -0.3, -0.4) == 0
    assert of(0.3, 0.1, 0.1, -0.1) == 4
    assert math.isnan(of(0.3, -0.1))
    assert of(0.3, -math.inf) == 1


def test_the_model_is_left_alone_and_a_seed_repeats():
    model, x = nn.Sequential(nn.LSTM(2, 3)).train(), torch.randn(30, 2, 2)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        a, b = (lyapunov_spectrum(model, x, layer="0.l0", rows=[1]) for _ in range(2))
    np.testing.assert_array_equal(a.by_row, b.by_row)
    assert a.layer == "0.l0"
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count is out of range.*1 to 6"),
        ({"count": 7}, "count is out of range"),
        ({"warmup": 29}, "warmup is out of range.*0 to 28"),
        ({"warmup": -1}, "warmup"),
        ({"rows": [3]}, "no such rows"),
        ({"layer": "l7"}, "no recurrent layer that ran fits"),
        ({"lengths": [1, 1]}, "at least two steps"),
    ],
)
def test_what_cannot_be_answered_says_why(arguments, message):
    with pytest.raises(InputError, match=message):
        lyapunov_spectrum(nn.LSTM(2, 3), torch.randn(30, 2, 2), **arguments)
