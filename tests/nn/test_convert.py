"""`convert` swaps the layers and keeps everything else: parameters, hooks, mode, sharing, optimisers."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.utils.parametrizations import orthogonal

import recollect
from recollect import convert, nn
from tolerances import assert_bits, assert_equal

BARE = {
    "LSTM": lambda: torch.nn.LSTM(3, 5, num_layers=2, bidirectional=True),
    "GRU": lambda: torch.nn.GRU(3, 5, bias=False, batch_first=True),
    "RNN tanh": lambda: torch.nn.RNN(3, 5, num_layers=2, dropout=0.3).eval(),
    "RNN relu": lambda: torch.nn.RNN(3, 5, nonlinearity="relu", dtype=torch.float64),
}
OURS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN tanh": nn.RNN, "RNN relu": nn.RNN}


class Model(torch.nn.Module):
    """An encoder and a decoder inside other modules, and one layer used at two places."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LSTM(4, 5))
        self.stack = torch.nn.ModuleList([torch.nn.GRU(5, 5), torch.nn.RNN(5, 5, nonlinearity="relu")])
        self.heads = torch.nn.ModuleDict({"out": torch.nn.Linear(5, 2)})
        self.again = self.stack[0]
        self.missing = None

    def forward(self, x):
        y, _ = self.encoder(x)
        for layer in (*self.stack, self.again):
            y, _ = layer(y)
        return self.heads["out"](y)


@pytest.mark.parametrize("name", BARE)
def test_a_bare_layer(name):
    torch.manual_seed(0)
    old = BARE[name]()
    new = convert(old)
    assert type(new) is OURS[name]
    assert type(old) is not type(new)
    assert [n for n, _ in new.named_parameters()] == [n for n, _ in old.named_parameters()]
    assert all(a is b for a, b in zip(new.parameters(), old.parameters(), strict=True))
    for attribute in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
                      "mode", "training"):  # fmt: skip
        assert getattr(new, attribute) == getattr(old, attribute)
    x = torch.randn(4, 2, 3, dtype=old.weight_ih_l0.dtype)
    assert_equal(new(x)[0], old(x)[0])


def test_nothing_is_drawn_or_written():
    old = BARE["LSTM"]()
    before, state = [each.clone() for each in old.parameters()], torch.get_rng_state()
    new = convert(old)
    assert torch.equal(torch.get_rng_state(), state)
    for each, value in zip(new.parameters(), before, strict=True):
        assert_bits(each, value)


def test_a_model():
    torch.manual_seed(0)
    model, x = Model(), torch.randn(4, 2, 3)
    expected = model(x)
    parameters, names = list(model.parameters()), list(model.state_dict())
    converted = convert(model)
    assert converted is model
    assert not any(isinstance(each, torch.nn.RNNBase) for each in model.modules())
    assert type(model.encoder[1]) is nn.LSTM
    assert model.again is model.stack[0]
    assert model.missing is None
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert_equal(model(x), expected)


def test_a_layer_at_two_places_of_one_container_stays_one():
    shared = torch.nn.LSTM(5, 5)
    model = convert(torch.nn.ModuleList([shared, torch.nn.Identity(), shared]))
    assert type(model[0]) is nn.LSTM
    assert model[0] is model[2]


def test_many_layers_stay_at_their_places():
    # Each old layer goes as soon as it is replaced, and the next may be made at its address.
    layers = [torch.nn.LSTM(size, 3) if size % 2 else torch.nn.GRU(size, 3) for size in range(1, 41)]
    model = torch.nn.ModuleList([torch.nn.ModuleList(layers[first : first + 4]) for first in range(0, 40, 4)])
    del layers
    convert(model)
    found = [(type(each), each.input_size) for part in model for each in part]
    assert found == [(nn.LSTM if size % 2 else nn.GRU, size) for size in range(1, 41)]


def test_two_layers_that_share_a_parameter_still_do():
    first, second = torch.nn.GRU(5, 5), torch.nn.GRU(5, 5)
    second.weight_hh_l0 = first.weight_hh_l0
    model = convert(torch.nn.ModuleList([first, second]))
    assert model[0].weight_hh_l0 is model[1].weight_hh_l0
    assert model[0].weight_ih_l0 is not model[1].weight_ih_l0


def test_converting_twice_changes_nothing():
    model = convert(Model())
    layer = model.encoder[1]
    assert convert(model).encoder[1] is layer
    ours = nn.LSTM(3, 5)
    assert convert(ours) is ours


def test_a_module_without_recurrent_layers_is_returned_as_it_is():
    linear = torch.nn.Linear(3, 5)
    assert convert(linear) is linear


def test_hooks_run():
    old, seen = torch.nn.GRU(3, 5), []
    old.register_forward_pre_hook(lambda module, arguments: seen.append("before"))
    old.register_forward_hook(lambda module, arguments, result: seen.append("after"))
    old.register_forward_hook(lambda module, arguments, named, result: seen.append(sorted(named)), with_kwargs=True)
    old.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    old.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    handle = old.register_full_backward_hook(lambda *_: seen.append("back"))
    new = convert(old)
    x = torch.randn(4, 2, 3, requires_grad=True)
    new(x, hx=None)[0].sum().backward()
    new.load_state_dict(new.state_dict())
    assert seen == ["before", "after", ["hx"], "back", "saved", "loaded"]
    handle.remove()
    seen.clear()
    new(x)[0].sum().backward()
    assert "back" not in seen


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training):
    model = Model().train(training)
    model.stack[0].train(not training)
    convert(model)
    assert model.encoder[1].training is training
    assert model.stack[0].training is not training


def test_frozen_parameters_and_gradients_are_kept():
    old = torch.nn.LSTM(3, 5)
    old.bias_hh_l0.requires_grad_(False)
    old(torch.randn(4, 2, 3))[0].sum().backward()
    gradient = old.weight_hh_l0.grad
    new = convert(old)
    assert not new.bias_hh_l0.requires_grad
    assert new.weight_hh_l0.grad is gradient


def test_an_optimiser_made_before_goes_on():
    torch.manual_seed(0)
    x = torch.randn(6, 2, 3)
    results = []
    for swap in (lambda model: model, convert):
        torch.manual_seed(1)
        model = Model().double()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(4):
            if step == 2:
                model = swap(model)
            optimiser.zero_grad()
            model(x.double()).square().mean().backward()
            optimiser.step()
        results.append(model(x.double()).detach())
    assert_equal(results[1], results[0])


def test_layers_that_cannot_be_taken_are_left_alone_with_a_warning():
    class Special(torch.nn.LSTM):
        pass

    special = Special(3, 5)
    with pytest.warns(UserWarning, match="left the layer, a Special, as it is"):
        assert convert(special) is special
    model = torch.nn.Sequential(orthogonal(torch.nn.LSTM(3, 5), "weight_hh_l0"))
    parametrised = model[0]
    with pytest.warns(UserWarning, match="left 0, a ParametrizedLSTM, as it is: .*convert it first"):
        assert convert(model)[0] is parametrised


def test_a_projected_lstm_is_taken():
    theirs = torch.nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2)
    x = torch.randn(4, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about oneDNN
        expected, state = theirs(x)
    ours = convert(theirs)
    assert ours.proj_size == 2
    assert ours.weight_hr_l1_reverse is theirs.weight_hr_l1_reverse
    y, final = ours(x)
    assert_equal(y, expected)
    for mine, true in zip(final, state, strict=True):
        assert_equal(mine, true)


def test_a_model_on_another_device_stays_there():
    new = convert(torch.nn.LSTM(3, 5, device="meta"))
    assert new.weight_ih_l0.is_meta


def test_what_was_converted_runs_on_the_kernels():
    model = convert(Model())
    for layer in (model.encoder[1], *model.stack):
        assert layer.backend_for(torch.zeros(4, 2, layer.input_size)).startswith("llvm")
    with recollect.set_backend("llvm"):
        model(torch.randn(4, 2, 3)).sum().backward()
