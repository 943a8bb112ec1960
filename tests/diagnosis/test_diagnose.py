"""What diagnose takes, what it leaves alone, and what it says to bad input."""

import copy
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

import recollect
from recollect.diagnosis.runs.twin import apart_from_the_caller
from recollect.errors import InputError


class Model(nn.Module):
    """Symbols in, dropout, two recurrent layers, noise, and a state kept between calls."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.encoder = nn.GRU(3, 4, batch_first=True, num_layers=2, dropout=0.5)
        self.norm = nn.BatchNorm1d(4)
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)
        self.kept = None

    def forward(self, x, scale=None):
        y, _ = self.encoder(self.embedding(x))
        zeros = torch.zeros(1, len(x), 4)
        y, (self.kept, _) = self.rnn(self.norm(y.transpose(1, 2)).transpose(1, 2), (zeros, zeros))
        y = y + 0.0 * torch.randn_like(y)
        return self.head(y.mean(1)) if scale is None else self.head(y.mean(1)).mul(scale)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def symbols():
    return torch.arange(24).view(2, 12) % 7


def test_the_model_the_gradients_and_the_random_state_are_left_alone(model):
    model(symbols()).sum().backward()  # now kept is not a leaf, which deepcopy refuses
    model.encoder.eval()
    modules = dict(model.named_modules())
    state = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    modes = {name: m.training for name, m in modules.items()}
    kept, version = model.kept, model.kept._version
    scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
    torch.rand(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    recollect.diagnose(model, (symbols(), scale), torch.tensor([0, 1]))

    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert torch.get_default_dtype() == torch.float32
    assert dict(model.named_modules()) == modules
    assert {name: m.training for name, m in modules.items()} == modes
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in modules.values())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
        assert value.dtype == state[name].dtype
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, grads[name])
        assert p.requires_grad
    assert model.kept is kept
    assert model.kept._version == version
    assert scale.grad is None


def test_the_result_is_the_same_every_time_and_in_every_mode(model):
    first = recollect.diagnose(model, symbols())
    model.eval()
    with torch.no_grad():
        second = recollect.diagnose(model, symbols())
    model.requires_grad_(False)
    third = recollect.diagnose(model, symbols())
    with torch.inference_mode(), recollect.set_backend("reference"):
        x = symbols().clone()
        fourth = recollect.diagnose(model, x)
    for each in (second, third, fourth):
        assert each.loss == first.loss
        assert list(each.curves) == list(first.curves)
        for name, curve in each.curves.items():
            np.testing.assert_array_equal(curve, first.curves[name])


def test_an_input_is_not_changed_in_place():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(2, 3)

        def forward(self, x, more):
            x.mul_(2)
            return self.rnn(x + more["shift"].float())[0]

    x, shift = torch.ones(5, 1, 2, dtype=torch.float64), torch.ones(2)
    diagnosis = recollect.diagnose(Scales(), (x, {"shift": shift}))
    assert torch.equal(x, torch.ones_like(x))
    assert len(diagnosis.grad_norm_by_lag) == 5


def test_a_loss_gets_the_output_whole_and_in_float64():
    seen = []

    def loss(output, target):
        seen.append((output, target))
        return output[0].square().mean()

    target = {"y": torch.ones(2), "k": torch.ones(2, dtype=torch.int32)}
    recollect.diagnose(nn.LSTM(2, 3), torch.randn(6, 4, 2), target, loss)
    (((y, (h, c)), got),) = seen
    assert (y.shape, h.shape, c.shape) == ((6, 4, 3), (1, 4, 3), (1, 4, 3))
    assert y.dtype == got["y"].dtype == torch.float64
    assert got["k"].dtype == torch.int32


def test_a_loss_that_takes_a_tensor_gets_the_first_of_a_tuple():
    torch.manual_seed(0)
    layer, x, target = nn.LSTM(2, 3), torch.randn(6, 4, 2), torch.randn(6, 4, 3)
    one = recollect.diagnose(layer, x, target, nn.MSELoss())
    other = recollect.diagnose(layer, x, target, lambda output, t: 4 * (output[0] - t).square().mean())
    np.testing.assert_allclose(one.grad_norm_by_lag, other.grad_norm_by_lag, rtol=1e-12)


def test_a_loss_module_with_weights_of_its_own_is_taken():
    model = nn.Sequential(nn.RNN(2, 3, batch_first=True), Last())
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))
    diagnosis = recollect.diagnose(model, torch.randn(4, 5, 2), torch.tensor([0, 1, 2, 0]), loss)
    assert diagnosis.grad_norm_by_lag[0] > 0
    assert loss.weight.dtype == torch.float32


class Last(nn.Module):
    def forward(self, output):
        return output[0][:, -1]


class TestChoosingALayer:
    def test_by_default_the_last_to_run(self, model):
        diagnosis = recollect.diagnose(model, symbols())
        assert diagnosis.curve == "rnn.l0.h"
        assert list(diagnosis.curves) == ["encoder.l0.h", "encoder.l1.h", "rnn.l0.h", "rnn.l0.c"]
        assert "encoder.weight_hh_l1.z" in diagnosis.spectral_radius

    @pytest.mark.parametrize(
        ("layer", "curve"),
        [("encoder", "encoder.l1.h"), ("encoder.l0", "encoder.l0.h"), ("rnn", "rnn.l0.h"), ("rnn.l0.c", "rnn.l0.c")],
    )
    def test_by_name(self, model, layer, curve):
        diagnosis = recollect.diagnose(model, symbols(), layer=layer)
        assert diagnosis.curve == curve
        np.testing.assert_array_equal(diagnosis.grad_norm_by_lag, diagnosis.curves[curve])
        assert diagnosis.gradient_horizon == diagnosis.horizons[curve]

    def test_of_a_bare_layer(self):
        layer = nn.GRU(2, 3, num_layers=2, bidirectional=True)
        assert recollect.diagnose(layer, torch.randn(5, 1, 2)).curve == "l1.h"
        assert recollect.diagnose(layer, torch.randn(5, 1, 2), layer="l0_reverse").curve == "l0_reverse.h"

    def test_an_unknown_one_is_an_error_with_the_nearest(self, model):
        with pytest.raises(InputError, match=r"encoder\.l1\.h.*did you mean 'encoder\.l"):
            recollect.diagnose(model, symbols(), layer="encoder.l2.h")


def test_two_steps_are_enough():
    diagnosis = recollect.diagnose(nn.LSTM(2, 3), torch.randn(2, 4, 2))
    g = diagnosis.grad_norm_by_lag
    assert diagnosis.growth_per_step == pytest.approx(g[1] / g[0])
    assert str(diagnosis)


def test_a_layer_that_runs_twice_is_shown_as_it_ran_last():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(2, 2, batch_first=True)

        def forward(self, x):
            _, h = self.rnn(x[:, :3])
            return self.rnn(x[:, 3:], h)[0]

    diagnosis = recollect.diagnose(Twice(), torch.randn(1, 10, 2))
    assert len(diagnosis.grad_norm_by_lag) == 7
    assert diagnosis.notes == ["rnn ran 2 times; its curves are those of the last time"]
    assert diagnosis.notes[0] in str(diagnosis)


def test_a_shared_layer_has_one_set_of_curves():
    rnn = nn.RNN(2, 2, batch_first=True)

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = rnn, rnn

        def forward(self, x):
            return self.other(self.one(x)[0])[0]

    assert list(recollect.diagnose(Shares(), torch.randn(1, 4, 2)).curves) == ["one.l0.h"]


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(2, 2, batch_first=True), nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0].detach()[:, -1])


class TestBadInput:
    @pytest.mark.parametrize(
        ("model", "words"),
        [
            (nn.Linear(2, 2), "no recurrent layer"),
            ("lstm", "takes a model"),
            (Detached(), "does not depend on any recurrent state"),
        ],
    )
    def test_a_model_that_has_no_gradient_through_time(self, model, words):
        with pytest.raises(InputError, match=words):
            recollect.diagnose(model, torch.randn(3, 4, 2))

    def test_a_layer_that_is_never_called(self):
        class Idle(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.RNN(2, 2)

            def forward(self, x):
                return x

        with pytest.raises(InputError, match=r"no recurrent layer of the model ran; given: 1 .*rnn"):
            recollect.diagnose(Idle(), torch.randn(3, 4, 2))

    def test_a_weight_that_is_nan(self):
        layer = nn.LSTM(2, 3)
        layer.weight_hh_l0.data[0, 0] = float("nan")
        with pytest.raises(InputError, match=r"weight is not finite; given: 1 of 36 values of weight_hh_l0"):
            recollect.diagnose(layer, torch.randn(4, 1, 2))

    def test_an_input_that_is_nan(self):
        x = torch.randn(6, 2, 2)
        x[4, 1] = float("inf")
        x[3, 1, 0] = float("nan")
        with pytest.raises(InputError, match=r"not finite.* 0\.l0\.h at step 3"):
            recollect.diagnose(nn.Sequential(nn.RNN(2, 3)), x)

    def test_a_loss_that_is_not_finite(self):
        with pytest.raises(InputError, match="all recurrent states are finite"):
            recollect.diagnose(nn.RNN(2, 3), torch.randn(4, 1, 2), loss=lambda y, _: y[0].sum() / 0)

    def test_a_single_step(self):
        with pytest.raises(InputError, match="at least two steps"):
            recollect.diagnose(nn.LSTM(2, 3), torch.randn(1, 4, 2))
        with pytest.raises(InputError, match="at least two steps"):
            recollect.diagnose(nn.LSTM(2, 3), torch.randn(5, 2, 2), lengths=[1, 1])

    def test_no_valid_step(self):
        for model in (nn.LSTM(2, 3), nn.Sequential(nn.LSTM(2, 3))):
            with pytest.raises(InputError):
                recollect.diagnose(model, torch.randn(5, 2, 2), lengths=[0, 0])

    @pytest.mark.parametrize("lengths", [[1, 2, 3], [9, 1], [-1, 2], [1.5, 2.0], "ab", torch.ones(2, 2)])
    def test_lengths_that_do_not_fit(self, lengths):
        for model in (nn.LSTM(2, 3), nn.Sequential(nn.LSTM(2, 3))):
            with pytest.raises(InputError):
                recollect.diagnose(model, torch.randn(5, 2, 2), lengths=lengths)

    def test_lengths_beside_a_packed_sequence(self):
        packed = torch.nn.utils.rnn.pack_sequence([torch.randn(3, 2)])
        with pytest.raises(InputError, match="has its lengths already"):
            recollect.diagnose(nn.Sequential(nn.RNN(2, 2)), packed, lengths=[3])

    @pytest.mark.parametrize("x", [torch.randn(5, 2, 9), torch.randn(5), None, "text", torch.randn(0, 2, 2)])
    def test_an_input_that_the_model_cannot_take(self, x):
        with pytest.raises(InputError):
            recollect.diagnose(nn.RNN(2, 3), x)
        with pytest.raises(InputError):
            recollect.diagnose(nn.Sequential(nn.Linear(2, 2), nn.RNN(2, 3)), x)

    @pytest.mark.parametrize(
        "target",
        [torch.randn(2, 7), torch.randn(9), torch.tensor([1, 2, 3]), torch.ones(2, 3, dtype=torch.bool), [1.0, 2.0]],
    )
    def test_a_target_that_does_not_fit(self, target):
        with pytest.raises(InputError, match="target"):
            recollect.diagnose(nn.RNN(2, 3), torch.randn(5, 2, 2), target)

    def test_a_class_beyond_the_scores(self):
        with pytest.raises(InputError, match="the loss could not be computed"):
            recollect.diagnose(nn.RNN(2, 3), torch.randn(5, 2, 2), torch.tensor([0, 3]))

    @pytest.mark.parametrize("value", [1.0, None, torch.ones(3)])
    def test_a_loss_that_is_not_one_number(self, value):
        with pytest.raises(InputError, match="single number"):
            recollect.diagnose(nn.RNN(2, 3), torch.randn(5, 2, 2), loss=lambda output, target: value)

    def test_a_model_without_a_tensor_to_return(self):
        class Odd(Detached):
            def forward(self, x):
                super().forward(x)
                return "nothing"

        with pytest.raises(InputError, match="returned no tensor"):
            recollect.diagnose(Odd(), torch.randn(2, 5, 2))


def test_two_threads_that_look_at_the_same_time_leave_the_default_dtype():
    inside, first_left = threading.Barrier(2), threading.Event()
    seen = []

    def look(*, leaves_first):
        with apart_from_the_caller(nn.Linear(1, 1)):
            inside.wait(30)
            if not leaves_first:
                first_left.wait(30)
            seen.append(torch.zeros(()).dtype)
        first_left.set()

    threads = [threading.Thread(target=look, kwargs={"leaves_first": first}) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [torch.float64] * 2
    assert torch.get_default_dtype() is torch.float32
