"""`convert` changes the class of the layers and keeps everything else: parameters, hooks, mode, sharing, optimisers."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings

import pytest
import torch
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import remove_parametrizations

import recollect
from recollect import convert, nn
from recollect.errors import InputError
from tolerances import GRADIENT, assert_bits, assert_equal

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
    new = copy.deepcopy(old)
    parameters = list(new.parameters())
    assert convert(new) is new
    assert type(new) is OURS[name]
    assert all(a is b for a, b in zip(new.parameters(), parameters, strict=True))
    assert vars(new).keys() == vars(OURS[name](3, 5)).keys() | {"mode"}
    assert [n for n, _ in new.named_parameters()] == [n for n, _ in old.named_parameters()]
    for attribute in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
                      "mode", "training"):  # fmt: skip
        assert getattr(new, attribute) == getattr(old, attribute)
    x = torch.randn(4, 2, 3, dtype=old.weight_ih_l0.dtype)
    assert_equal(new(x)[0], old(x)[0])


def test_a_shallow_copy_leaves_the_layer():
    old = torch.nn.GRU(3, 5)
    new = convert(copy.copy(old))
    assert (type(old), type(new)) == (torch.nn.GRU, nn.GRU)
    assert new.weight_hh_l0 is old.weight_hh_l0
    x = torch.randn(4, 2, 3)
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
    assert not any(type(each) in (torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU) for each in model.modules())
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


def test_a_subclass_is_left_alone_with_a_warning():
    class Special(torch.nn.LSTM):
        pass

    special = Special(3, 5)
    with pytest.warns(UserWarning, match="left the layer, a Special, as it is"):
        assert convert(special) is special
    assert type(special) is Special


def test_a_projected_lstm_is_taken():
    theirs = torch.nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2)
    x = torch.randn(4, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about oneDNN
        expected, state = theirs(x)
    ours = convert(theirs)
    assert type(ours) is nn.LSTM
    assert ours.proj_size == 2
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


# ---------------------------------------------------------------- cells

CELLS = {
    "RNNCell": lambda: torch.nn.RNNCell(3, 5, nonlinearity="relu"),
    "LSTMCell": lambda: torch.nn.LSTMCell(3, 5, bias=False),
    "GRUCell": lambda: torch.nn.GRUCell(3, 5, dtype=torch.float64),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell(name):
    old = CELLS[name]()
    new = copy.deepcopy(old)
    parameters = list(new.parameters())
    assert type(convert(torch.nn.Sequential(new))[0]) is getattr(nn, name)
    assert all(a is b for a, b in zip(new.parameters(), parameters, strict=True))
    assert vars(new).keys() == vars(getattr(nn, name)(3, 5)).keys()
    assert repr(new) == repr(old)
    x = torch.randn(2, 3, dtype=old.weight_ih.dtype)
    for mine, true in zip(new(x), old(x), strict=True):
        assert_equal(mine, true)


# ---------------------------------------------------------------- what somebody has added to a layer


def weights_of(layer):
    return "weight_hh" if isinstance(layer, torch.nn.RNNCellBase) else "weight_hh_l0"


def deprecated(add):
    def quietly(layer, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            add(layer, name)

    return quietly


ADDED = {
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight norm": deprecated(torch.nn.utils.weight_norm),
    "old spectral norm": deprecated(torch.nn.utils.spectral_norm),
    "pruning": lambda layer, name: prune.l1_unstructured(layer, name, amount=0.3),
}
REMOVED = {
    "weight norm": remove_parametrizations,
    "orthogonal": remove_parametrizations,
    "old weight norm": torch.nn.utils.remove_weight_norm,
    "old spectral norm": torch.nn.utils.remove_spectral_norm,
    "pruning": prune.remove,
}
HOSTS = {
    "LSTM": lambda: torch.nn.LSTM(3, 5, 2, bidirectional=True),
    "GRU": lambda: torch.nn.GRU(3, 5),
    "RNN": lambda: torch.nn.RNN(3, 5),
    "LSTMCell": lambda: torch.nn.LSTMCell(3, 5),
}


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("host", HOSTS)
def test_what_computes_a_weight_goes_on(host, added):
    """Results, gradients, steps of training, the state_dict, and its removal are those of torch.nn's own layer."""
    torch.manual_seed(0)
    x = torch.randn(*([2, 3] if host.endswith("Cell") else [4, 2, 3]), dtype=torch.float64)
    results = []
    for swap in (lambda layer: layer, convert):
        torch.manual_seed(1)
        layer = HOSTS[host]().double()
        name = weights_of(layer)
        ADDED[added](layer, name)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
        layer = swap(layer)
        # spectral norm moves on whenever it is read in training, and torch's layer reads it more often than ours
        layer.train(added != "old spectral norm")
        seen = []
        for _ in range(3):
            optimiser.zero_grad()
            y = layer(x)[0]
            y.square().sum().backward()
            seen += [y.detach(), *(parameter.grad.clone() for parameter in layer.parameters())]
            optimiser.step()
        names = list(layer.state_dict())
        REMOVED[added](layer, name)
        results.append(([*seen, layer(x)[0]], names, list(layer.state_dict())))
    (true, names, after), (mine, own_names, own_after) = results
    assert own_names == names
    assert own_after == after
    assert type(layer) is getattr(nn, host)
    for value, expected in zip(mine, true, strict=True):
        assert_equal(value, expected, GRADIENT)


def test_buffers_submodules_and_attributes_stay():
    layer = torch.nn.LSTM(3, 5)
    layer.register_buffer("mean", torch.ones(3))
    layer.register_buffer("seen", torch.zeros(1), persistent=False)
    layer.norm = torch.nn.LayerNorm(5)
    layer.inner = torch.nn.GRU(5, 5)
    layer.note, layer.mask = "mine", torch.ones(2)
    layer.flatten_parameters = lambda: None  # as models with dropped weights have it
    hook = layer.register_forward_hook(lambda module, arguments, results: (module.norm(results[0]), module.note))
    x, names = torch.randn(4, 2, 3), list(layer.state_dict())
    expected = layer(x)[0]
    assert type(convert(layer)) is nn.LSTM
    assert type(layer.inner) is nn.GRU
    assert list(layer.state_dict()) == names
    assert [name for name, _ in layer.named_buffers()] == ["mean", "seen"]
    y, note = layer(x)
    assert note == "mine"
    assert_equal(y, expected)
    hook.remove()
    assert len(layer(x)[1]) == 2
    for other in (copy.deepcopy(layer), layer.double().float()):
        assert (other.note, other.mask.sum()) == ("mine", 2)
        assert_equal(other.norm(other(x)[0]), expected)


def test_a_hook_that_holds_the_module_is_called_with_it():
    layer, seen = torch.nn.GRU(3, 5), []
    layer.register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    convert(layer).load_state_dict(layer.state_dict())
    assert seen == [layer]


def test_what_refers_to_a_layer_refers_to_ours():
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.LSTM(3, 5)
            self.layers, self.by_name = [self.rnn], {"rnn": self.rnn}

    model = convert(Holder())
    assert model.layers[0] is model.by_name["rnn"] is model.rnn
    assert type(model.layers[0]) is nn.LSTM


@pytest.mark.parametrize(
    ("hold", "path"),
    [
        (lambda model, layer: setattr(model, "call", layer.forward), "call"),
        (lambda model, layer: setattr(model, "calls", [{"first": layer.forward}]), r"calls\[0\]\['first'\]"),
        (lambda model, layer: setattr(model, "call", functools.partial(layer.forward, hx=None)), "call"),
    ],
)
def test_a_bound_method_of_torchs_is_told_of_and_works(hold, path):
    model = torch.nn.Sequential(torch.nn.LSTM(3, 5))
    hold(model, model[0])
    forward, x = model[0].forward, torch.randn(4, 2, 3)
    expected = forward(x)[0]
    with pytest.warns(UserWarning, match=f"left {path} as it is: a method bound .* call the layer's own forward"):
        convert(model)
    assert_equal(forward(x)[0], expected)
    assert_equal(model[0](x)[0], expected)


@pytest.mark.parametrize(
    ("wrap", "path"), [(lambda layer: layer, r"layers\[0\]"), (torch.nn.Sequential, r"layers\[0\]\.0")]
)
def test_a_layer_that_is_not_registered_is_told_of(wrap, path):
    model, layer = torch.nn.Sequential(torch.nn.Linear(3, 3)), torch.nn.LSTM(3, 5)
    model.layers = [wrap(layer)]
    with pytest.warns(UserWarning, match=f"left {path}, a LSTM, as it is: it is not registered as a submodule"):
        convert(model)
    assert type(layer) is torch.nn.LSTM


def test_a_list_that_holds_itself_is_no_obstacle():
    model = torch.nn.Sequential(torch.nn.LSTM(3, 5))
    model.itself = [model]
    model.itself.append(model.itself)
    assert type(convert(model)[0]) is nn.LSTM


def patched(layer):
    layer.forward = lambda *arguments: None


def listed(layer):
    layer._flat_weights = [weight * 2 for weight in layer._flat_weights]


def reshaped(layer):
    layer.weight_ih_l0 = torch.nn.Parameter(torch.zeros(20, 4))


LEFT = {
    "forward": (patched, "its forward was replaced"),
    "a method": (lambda layer: setattr(layer, "check_input", lambda *_: None), "its check_input was replaced"),
    "a name of ours": (
        lambda layer: setattr(layer, "zoneout", 0.5),
        "its attribute 'zoneout' has a meaning of its own",
    ),
    "a method of ours": (lambda layer: setattr(layer, "backend_for", 1), "its attribute 'backend_for' has a meaning"),
    "other weights": (listed, "its _flat_weights, with which torch.nn computes, are others"),
    "a missing weight": (lambda layer: delattr(layer, "weight_hh_l0"), "its weight_hh_l0 is missing"),
    "another shape": (reshaped, r"its weight_ih_l0 is torch.float32 \(20, 4\), where real \(20, 3\)"),
    "complex": (lambda layer: layer.to(torch.complex64), "its weight_ih_l0 is torch.complex64"),
}


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("case", LEFT)
def test_a_layer_that_cannot_be_right_is_left_as_it_is(case):
    change, reason = LEFT[case]
    model = torch.nn.Sequential(torch.nn.LSTM(3, 5))
    change(model[0])
    before = dict(vars(model[0]))
    with pytest.warns(UserWarning, match=f"left 0, a LSTM, as it is: {reason}"):
        assert convert(model) is model
    assert type(model[0]) is torch.nn.LSTM
    assert vars(model[0]) == before


def test_a_cell_without_units_is_left_as_it_is():
    with pytest.warns(UserWarning, match="left the layer, a LSTMCell, as it is: hidden_size must be a positive"):
        assert type(convert(torch.nn.LSTMCell(3, 0))) is torch.nn.LSTMCell


def test_only_a_module_is_converted():
    with pytest.raises(InputError, match=r"no model to convert; given: dict; expected: a torch.nn.Module"):
        convert({"rnn": torch.nn.LSTM(3, 5)})


def test_what_was_converted_is_copied_and_pickled():
    model, x = convert(Model()), torch.randn(4, 2, 3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_bits(other(x), model(x))
