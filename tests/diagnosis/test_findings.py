"""Each fault is found on a model made to have it, and its remedy is code that runs and helps."""

import math

import pytest
import torch
from torch import nn

import recollect
from recollect.diagnosis import Finding


@recollect.cell(gates="a", states="h")
def linear(inp, rec, prev):
    return inp.a + rec.a


def scaled(rho, size=4):
    layer = recollect.nn.Recurrent(linear, 1, size)
    layer.weight_hh_l0.data = rho * torch.eye(size)
    return layer


def kinds(diagnosis):
    return [finding.kind for finding in diagnosis.findings]


class Classifier(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.blocks = nn.ModuleList([rnn])
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


@pytest.mark.parametrize(
    ("rho", "steps", "kind"),
    [
        (1.06, 20, "exploding"),  # by growth: 1.06 ** 19 is 3
        (1.06, 19, "healthy"),  # too short to tell
        (1.04, 60, "healthy"),  # 1.04 ** 59 is 10
        (1.04, 130, "exploding"),  # by size: 1.04 ** 129 is 158
        (3.0, 6, "exploding"),  # 3 ** 5 is 243
        (3.0, 5, "healthy"),  # 3 ** 4 is 81
        (0.9, 176, "healthy"),  # the horizon is 44, a quarter
        (0.9, 177, "vanishing"),
    ],
)
def test_thresholds_on_a_linear_cell(rho, steps, kind):
    assert kinds(recollect.diagnose(scaled(rho), torch.randn(steps, 2, 1))) == [kind]


def test_a_gradient_that_leaves_float64_is_exploding():
    layer = recollect.nn.init.identity_(scaled(1.0), 1e10)
    diagnosis = recollect.diagnose(layer, torch.zeros(60, 1, 1))
    assert kinds(diagnosis) == ["exploding"]
    assert "lag 31" in diagnosis.findings[0].evidence  # 1e310
    assert diagnosis.growth_per_step == pytest.approx(1e10)
    assert str(diagnosis)


def test_a_gradient_that_is_zero_everywhere_has_vanished():
    model = Classifier(nn.RNN(1, 3))
    model.head.weight.data.zero_()
    diagnosis = recollect.diagnose(model, torch.randn(8, 2, 1))
    assert (diagnosis.gradient_horizon, diagnosis.censored, diagnosis.growth_per_step) == (0, False, 0.0)
    assert kinds(diagnosis) == ["vanishing"]
    assert "0 at every one of 8 steps" in diagnosis.findings[0].evidence


def test_dead_relu_units_pass_nothing_back():
    layer = nn.RNN(1, 3, nonlinearity="relu")
    layer.bias_ih_l0.data.fill_(-100.0)
    diagnosis = recollect.diagnose(layer, torch.randn(30, 2, 1))
    assert (diagnosis.gradient_horizon, diagnosis.growth_per_step) == (1, 0.0)
    assert kinds(diagnosis) == ["vanishing", "dead_units"]


def test_the_state_c_may_carry_what_h_does_not():
    torch.manual_seed(0)
    layer = recollect.nn.LSTM(2, 8)
    layer.weight_hh_l0.data.zero_()
    recollect.nn.init.forget_bias_(layer, 4.0)
    x = torch.randn(60, 3, 2)
    kept = recollect.diagnose(layer, x)
    assert kept.horizons["l0.c"] == 60
    assert kinds(kept) == ["healthy"]
    recollect.nn.init.forget_bias_(layer, -4.0)
    shut = recollect.diagnose(layer, x)
    assert max(shut.horizons.values()) < 15
    assert kinds(shut) == ["vanishing", "forget_gate_shut"]


@pytest.mark.parametrize("seed", range(5))
def test_usual_initialisations_are_healthy(seed):
    torch.manual_seed(seed)
    x = torch.randn(40, 8, 2)
    lstm = recollect.nn.init.forget_bias_(recollect.nn.LSTM(2, 32), 1.0)
    rnn = recollect.nn.init.orthogonal_(recollect.nn.RNN(2, 32))
    for layer in (lstm, rnn):
        assert kinds(recollect.diagnose(layer, x)) == ["healthy"]


@pytest.mark.parametrize("rnn", [nn.LSTM, recollect.nn.LSTM])
def test_the_remedy_for_a_vanishing_lstm_runs_and_helps(rnn):
    torch.manual_seed(0)
    model, x = Classifier(rnn(2, 16)), torch.randn(60, 4, 2)
    before = recollect.diagnose(model, x)
    assert kinds(before) == ["vanishing"]
    scope = {"model": model, "recollect": recollect}
    for _ in range(2):
        exec(before.findings[0].remedy, scope)
        before = recollect.diagnose(scope["model"], x)
        if kinds(before) == ["healthy"]:
            break
    assert kinds(before) == ["healthy"]


def test_the_remedy_for_a_vanishing_rnn_runs_and_helps():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 2), nn.RNN(2, 16)), 0.1 * torch.randn(40, 4, 2)
    before = recollect.diagnose(model, x)
    assert kinds(before) == ["vanishing"]
    assert 'model.get_submodule("1")' in before.findings[0].remedy
    scope = {"model": model, "recollect": recollect}
    exec(before.findings[0].remedy, scope)
    after = recollect.diagnose(scope["model"], x)
    assert kinds(after) == ["healthy"]
    assert after.gradient_horizon > before.gradient_horizon


def test_the_remedy_for_an_exploding_gradient_is_clipping_that_runs():
    model = Classifier(scaled(1.5))
    x = torch.randn(40, 2, 1)
    (finding,) = recollect.diagnose(model, x).findings
    assert (finding.kind, finding.severity) == ("exploding", "error")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model(x).square().mean()
    exec(finding.remedy, {"recollect": recollect, "model": model, "optimizer": optimizer, "loss": loss})
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    assert norm == pytest.approx(1.0, rel=1e-4)


def test_a_finding_says_all_of_itself():
    finding = Finding("exploding", "error", "it grows", "a = 1\nb = 2")
    assert str(finding) == "exploding (error): it grows\n    a = 1\n    b = 2"
