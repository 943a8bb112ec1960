"""Where the numbers go bad on the way forward, or were so from the start, and what is said of it."""

from __future__ import annotations

import math

import pytest
import torch
from faulty_models import HUGE, ROW, STEP, B, Exploding, Loop, Net, T, cell_layers, faulty, found, layers, place
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from recollect import nn as ours
from recollect.errors import TrainingError
from recollect.training import Observer, train


@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_first_bad_output_names_layer_step_and_row(make, batch_first):
    rnn, x = faulty(make, batch_first=batch_first)
    culprit = found(Net(rnn), x)
    assert (culprit.layer, culprit.place) == ("rnn", place(STEP, ROW))
    assert str(culprit) == (
        f"the output of layer 'rnn' ({make.__name__}) is {culprit.value} at time step 5, row 2 (counted from 0)"
    )
    # The bare layer is the model itself.
    culprit = found(rnn, x, loss=lambda output, y: output[0].mean())
    assert (culprit.layer, culprit.place) == ("", place(STEP, ROW))


@layers
def test_an_unbatched_sequence_has_no_rows(make):
    rnn, x = faulty(make)
    assert found(Net(rnn), x[ROW]).place == place(STEP)
    x = x.clone()
    x[ROW, 7] = math.nan
    assert found(Net(rnn), x[ROW]).place == place(7)


@layers
def test_packed_sequences(make):
    rnn, x = faulty(make)
    lengths = torch.tensor([2, 9, 7, 5])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    culprit = found(Net(rnn), packed)
    assert (culprit.layer, culprit.place) == ("rnn", place(STEP, ROW))
    # A layer that gets the packed rows themselves.
    model = Net(make(2, 3))
    model.head = nn.Sequential(Exploding(), model.head)
    model.head[0].at = int(packed.batch_sizes[:3].sum()) + 1  # step 3, the second longest row
    culprit = found(model, pack_padded_sequence(torch.randn(B, T, 2), lengths, True, False))
    assert (culprit.layer, culprit.place) == ("head.0", place(3, 2))
    x = torch.randn(B, T, 2)
    x[0, 1] = math.nan
    culprit = found(model, pack_padded_sequence(x, lengths, True, False))
    assert str(culprit) == "the input x is nan at time step 1, row 0 (counted from 0)"


@layers
def test_the_two_directions_go_bad_from_their_own_ends(make):
    rnn, x = faulty(make, bidirectional=True)
    assert found(Net(rnn), x).place == place(STEP, ROW)
    # Bad are the outputs of the reverse direction from STEP down to 0.
    rnn, x = faulty(make, bidirectional=True, reverse_only=True)
    assert found(Net(rnn), x).place == place(STEP, ROW)


@layers
@pytest.mark.parametrize("bidirectional", [False, True])
def test_in_a_stack_the_lowest_bad_layer_is_named(make, bidirectional):
    for layer in range(3):
        first = layer * (1 + bidirectional)
        rnn, x = faulty(make, num_layers=3, bidirectional=bidirectional, first_layer=first)
        assert f"layer 'rnn' ({make.__name__}), from l{layer} on, is nan at time step 5" in str(found(Net(rnn), x))


@pytest.mark.parametrize("make", [nn.RNN, ours.RNN])
def test_a_real_overflow(make):
    rnn = make(1, 1, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.fill_(1.0)
        rnn.weight_hh_l0.fill_(100.0)
    x = torch.zeros(B, 40, 1)
    x[ROW] = 1e6
    (y, _) = rnn(x)
    bad = ~torch.isfinite(y)
    assert bad[ROW].any()
    assert not bad[:ROW, :20].any()
    first = int(bad[ROW, :, 0].nonzero()[0])
    assert 0 < first < 19
    culprit = found(Net(rnn), x)
    assert (culprit.layer, culprit.place, culprit.value) == ("rnn", place(first, ROW), "inf")


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_layer_without_time_of_its_own_takes_it_from_the_recurrent_one(batch_first):
    model = Net(nn.LSTM(2, 3, batch_first=batch_first))
    model.head = nn.Sequential(model.head, Exploding())
    model.head[1].at = (ROW, STEP) if batch_first else (STEP, ROW)
    culprit = found(model, torch.randn((B, T, 2) if batch_first else (T, B, 2)))
    assert (culprit.layer, culprit.place, culprit.value) == ("head.1", place(STEP, ROW), "inf")


def test_code_between_layers_is_of_the_module_that_holds_it():
    model = Net(nn.LSTM(2, 3, batch_first=True))

    def between(h):
        h = h * 0 + 1
        h[ROW, STEP:] = -1
        return h.log()

    model.between = between
    culprit = found(model, torch.randn(B, T, 2))
    assert (culprit.layer, culprit.place, culprit.value) == ("", place(STEP, ROW), "nan")
    assert "the model (Net) computes itself and gives to layer 'head' (Linear)" in str(culprit)


@cell_layers
def test_the_number_of_a_cells_call_is_the_time_step(make):
    cell = make(2, 3)

    def spoil(module, args, output):
        bad = (args[0].abs() > HUGE).any(-1, keepdim=True)
        if isinstance(output, tuple):
            return tuple(each.masked_fill(bad, math.nan) for each in output)
        return output.masked_fill(bad, math.nan)

    cell.register_forward_hook(spoil)
    x = torch.randn(B, T, 2)
    x[ROW, STEP] = 3e38
    culprit = found(Loop(cell), x)
    assert (culprit.layer, culprit.place) == ("cell", place(STEP, ROW))


def test_a_loss_that_is_bad_though_the_output_is_not():
    culprit = found(nn.Linear(1, 1), torch.ones(B, 1), loss=lambda output, y: output.mean() / 0)
    assert culprit.layer is None
    assert str(culprit).startswith("the loss, of a finite output, is ")


@pytest.mark.parametrize("batch_first", [False, True])
def test_bad_input_says_so(batch_first):
    model = Net(nn.LSTM(2, 3, batch_first=batch_first))
    x = torch.randn(B, T, 2)
    x[ROW, STEP, 1] = math.nan
    culprit = found(model, x if batch_first else x.transpose(0, 1))
    assert str(culprit) == "the input x is nan at time step 5, row 2 (counted from 0)"
    assert (culprit.layer, culprit.place) == (None, place(STEP, ROW))
    assert "data" in culprit.remedy


def test_bad_input_in_a_structure():
    class Two(nn.Module):
        def forward(self, x):
            return x["series"][0] + x["series"][1]

    x = {"series": (torch.ones(B, T, 1), torch.ones(B, T, 1))}
    x["series"][1][ROW, STEP] = -math.inf
    expected = "the input x['series'][1] is -inf at time step 5, row 2 (counted from 0)"
    assert str(found(Two(), x)) == expected


class Padded(Net):
    def forward(self, batch):
        x, lengths = batch
        return self.head(self.rnn(x, lengths=lengths)[0])


def test_what_is_bad_and_reaches_nothing_is_not_accused():
    lengths = torch.tensor([9, 3, 9, 9])
    x = torch.randn(B, T, 2)
    x[1, 3:] = math.nan
    model = Padded(ours.LSTM(2, 3, batch_first=True))
    model.head = nn.Sequential(model.head, Exploding())
    culprit = found(model, (x, lengths))
    assert (culprit.layer, culprit.place, culprit.value) == ("head.1", place(STEP, ROW), "inf")
    x[1, 2] = math.nan
    assert str(found(model, (x, lengths))) == "the input x[0] is nan at time step 2, row 1 (counted from 0)"

    class Masked(nn.Module):
        """Its scores are -inf where it must not look, on purpose."""

        def __init__(self):
            super().__init__()
            self.mask, self.softmax = Exploding(), nn.Softmax(-1)

        def forward(self, x):
            return self.softmax(-self.mask(x)) * x

    masked, bad = Masked(), Exploding()
    masked.mask.at = (0, 0, 0)
    culprit = found(nn.Sequential(masked, bad), torch.randn(B, T, 2))
    assert (culprit.layer, culprit.place) == ("1", place(STEP, ROW))


def test_a_bad_target_says_so():
    y = torch.zeros(B, 3)
    y[ROW, 1] = math.nan
    culprit = found(nn.Linear(2, 3), torch.ones(B, 2), y, nn.functional.mse_loss)
    assert str(culprit) == "the target y, at index [2, 1], is nan"


def test_bad_weights_and_buffers_are_named():
    model = nn.Sequential(nn.LSTM(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        model[0].bias_hh_l0[4] = math.nan
    assert str(found(model, None)) == "the weight '0.bias_hh_l0' is nan"
    with torch.no_grad():
        model[0].bias_hh_l0[4] = 0
        model[1].running_var[0] = math.inf
    assert str(found(model, None)) == "the buffer '1.running_var' is inf"


def test_a_final_state_alone():
    class Memory(nn.Module):
        batch_first = True

        def forward(self, x):
            state = torch.ones(1, B, 3)
            state[0, ROW] = math.inf
            return x, (state, state)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = Memory()

        def forward(self, x):
            return self.memory(x)[1][0]

    culprit = found(Model(), torch.ones(B, T, 1))
    assert str(culprit) == "the final state of layer 'memory' (Memory) is inf at row 2 (counted from 0)"


def test_a_model_that_cannot_be_run_again_does_not_hide_the_error():
    class Once(nn.Module):
        def forward(self, x):
            raise KeyError("only once")

    assert "KeyError" in str(found(Once(), torch.ones(B, 1)))
    assert "no layer can be named" in str(found(nn.Linear(1, 1), torch.ones(B, 1)))


class Listener(Observer):
    def __init__(self):
        self.seen = []

    def on_step(self, step, loss, clipped):
        self.seen.append((step, math.isfinite(loss), clipped.finite))


@layers
def test_training_skips_five_steps_and_then_names_the_place(make):
    torch.manual_seed(0)
    rnn, x = faulty(make)
    model, listener = Net(rnn), Listener()
    good = x.clamp(-1, 1) * 0.01
    y = torch.zeros(B, T, 1)
    batches = [(good, y), *[(x, y)] * 3, (good, y), *[(x, y)] * 9]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    with pytest.raises(TrainingError) as caught:
        train(model, batches, loss=nn.functional.mse_loss, optimizer=optimizer, epochs=1, observers=[listener])
    message = str(caught.value)
    assert "not finite in 5 steps in a row" in message
    assert f"layer 'rnn' ({make.__name__})" in message
    assert "at time step 5, row 2" in message
    assert "epoch 1, step 10" in message
    assert "lower the learning rate" in message
    finite = [True, *[False] * 3, True, *[False] * 5]
    assert listener.seen == [(step, each, each) for step, each in enumerate(finite)]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_step_is_run_again_with_the_same_random_numbers():
    rows = []

    class Roulette(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            rows.append(int(torch.randint(len(x), ())))
            bad = torch.zeros_like(x)
            bad[rows[-1]] = math.nan
            return self.weight * x + bad

    model = Roulette()
    with pytest.raises(TrainingError, match=r"row \d+ ") as caught:
        train(
            model,
            [(torch.ones(1000, 1), torch.ones(1000, 1))] * 5,
            loss=nn.functional.mse_loss,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            epochs=1,
            seed=0,
        )
    assert len(rows) == 6
    assert len(set(rows)) == 5
    assert rows[5] == rows[4]
    assert f"row {rows[4]} " in str(caught.value)
