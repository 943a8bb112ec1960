"""What a probe saw in training becomes a finding, with a remedy that a training can use."""

import math

import pytest
import torch
from torch import nn

import recollect
from last_step import LastStep
from recollect.diagnosis import Probe
from recollect.errors import TrainingError
from recollect.training import train


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(640, 20, 2, generator=generator)
    return x, x[:, -5:, :1].mean(1)


def trained(x, y, max_norm, rate=1e-2, size=16):
    torch.manual_seed(0)
    model = LastStep(recollect.nn.init.forget_bias_(recollect.nn.LSTM(2, 12, batch_first=True), 1.0))
    probe = Probe(model)
    batches = list(zip(x.split(size), y.split(size), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    train(model, batches, loss=nn.functional.mse_loss, optimizer=optimizer, epochs=1, max_norm=max_norm,
          observers=[probe])  # fmt: skip
    return model, probe


def beside(model, x, y, probe):
    found = recollect.diagnose(model, x[:32], y[:32], training=probe).findings
    return [each for each in found if each.kind not in ("healthy", "vanishing")]


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_sound_training_raises_no_alarm(data, max_norm):
    model, probe = trained(*data, max_norm)
    assert beside(model, *data, probe) == []


def test_a_threshold_that_clips_most_steps(data):
    model, probe = trained(*data, 1e-3)
    (finding,) = beside(model, *data, probe)
    assert finding.kind == "clip_threshold_too_low"
    assert "100% of 40 steps were clipped to 0.001" in finding.evidence
    limit = float(finding.remedy.partition("max_norm=")[2].partition(")")[0])
    share = sum(norm > limit for norm in probe.norms) / len(probe.norms)
    assert 0.02 <= share <= 0.2  # one step in ten
    model, probe = trained(*data, limit)
    assert beside(model, *data, probe) == []


@pytest.mark.parametrize("max_norm", [None, 1e6])
def test_a_threshold_that_lets_all_spikes_pass(data, max_norm):
    x, y = data
    y = y.clone()
    y[320:336] += 1000.0  # one batch in forty
    model, probe = trained(x, y, max_norm, rate=1e-6)
    (finding,) = beside(model, x, y, probe)
    assert finding.kind == "clip_threshold_too_high"
    assert "none of 40 steps was clipped" in finding.evidence
    limit = float(finding.remedy.partition("max_norm=")[2].partition(")")[0])
    assert sorted(probe.norms)[-6] < limit < max(probe.norms) / 10
    model, probe = trained(x, y, limit, rate=1e-6)
    assert beside(model, x, y, probe) == []


def test_too_few_steps_tell_nothing(data):
    x, y = data
    model, probe = trained(x[:160], y[:160], 1e-3)
    assert len(probe.norms) == 10
    assert beside(model, x, y, probe) == []


def test_where_numbers_went_bad_in_the_data(data):
    x, y = data
    x = x.clone()
    x[37, 4, 1] = math.nan
    model, probe = trained(x, y, 1.0)
    (finding,) = beside(model, x[64:], y[64:], probe)
    assert (finding.kind, finding.severity, finding.when) == ("not_finite", "error", "data")
    for said in ("epoch 1, step 3", "the input x is nan", "time step 4, row 5"):  # row 37 is the fifth of its batch
        assert said in finding.evidence
    scope = {"torch": torch, "x": x, "y": y}
    exec(finding.remedy, scope)
    assert len(scope["x"]) == len(scope["y"]) == 639
    assert torch.isfinite(scope["x"]).all()


def test_where_numbers_went_bad_in_the_model(data):
    x, y = data
    torch.manual_seed(0)
    model = LastStep(recollect.nn.RNN(2, 12, nonlinearity="relu", batch_first=True))
    model.rnn.weight_hh_l0.data = 1e30 * torch.eye(12)
    model.rnn.weight_ih_l0.data.abs_()
    probe = Probe(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match="layer 'rnn'"):
        train(model, [(x[:32].abs(), y[:32])] * 5, loss=nn.functional.mse_loss, optimizer=optimizer, epochs=1,
              observers=[probe])  # fmt: skip
    sound = LastStep(recollect.nn.init.forget_bias_(recollect.nn.LSTM(2, 12, batch_first=True), 1.0))
    (finding,) = beside(sound, x, y, probe)
    assert (finding.kind, finding.when) == ("not_finite", "step")
    assert "layer 'rnn' (RNN)" in finding.evidence
    optimizer = torch.optim.SGD(sound.parameters(), lr=0.1)
    loss = sound(x).square().mean()
    exec(finding.remedy, {"recollect": recollect, "model": sound, "optimizer": optimizer, "loss": loss})
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
