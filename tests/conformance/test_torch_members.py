"""The members of torch.nn's layers beside the call, which models written for them use: what ours answer is the same."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import recollect
from against_torch import KINDS, B, H, I, T, assert_same, drawn, kinds, make, modules, pair, projections_warn, states
from recollect import nn
from recollect.errors import InputError
from tolerances import assert_bits, assert_equal

pytestmark = projections_warn

SHAPES = [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}, {"batch_first": True}]
shaped = pytest.mark.parametrize("options", SHAPES, ids=str)


def derived(kind, **options):
    """Our layer as a subclass of torch.nn's, and torch's, with the same weights."""
    ours, theirs = pair(kind, **options)
    return recollect.convert(ours, subclass=True), theirs


def outcome(call):
    """What a call returns, or the type and the words of what it raises."""
    try:
        return call()
    except Exception as error:
        return next(base for base in (RuntimeError, ValueError) if isinstance(error, base)), str(error)


def assert_same_outcome(mine, true):
    if isinstance(true, torch.Tensor):
        assert_bits(mine, true)
    elif isinstance(true, tuple) and true and isinstance(true[0], torch.Tensor):
        for own, expected in zip(mine, true, strict=True):
            assert_bits(own, expected)
    else:
        assert mine == true


@kinds
@shaped
@pytest.mark.parametrize("made", [pair, derived])
def test_the_lists_of_weights(kind, options, made):
    ours, theirs = made(kind, **options)
    assert isinstance(ours._flat_weights, list)
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert ours._all_weights == theirs._all_weights
    assert ours.mode == theirs.mode
    assert ours.proj_size == theirs.proj_size
    for mine, name, true in zip(ours._flat_weights, ours._flat_weights_names, theirs._flat_weights, strict=True):
        assert mine is getattr(ours, name)
        assert_bits(mine, true)


@kinds
@shaped
@pytest.mark.parametrize("made", [pair, derived])
def test_the_checks(kind, options, made):
    """The sizes that are expected, and whether input and states are taken, with torch.nn's own words where not."""
    ours, theirs = made(kind, dtype=torch.float64, **options)
    x, packed = drawn(T, B, I), pack_sequence([drawn(T, I), drawn(2, I)])
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    batch = T if options.get("batch_first") else B
    for value, sizes, rows in ((x, None, batch), (packed.data, packed.batch_sizes, 2)):
        good, bad = states(kind, count, rows), states(kind, count, rows + 1)
        calls = [
            lambda layer, value=value, sizes=sizes: layer.get_expected_hidden_size(value, sizes),
            lambda layer, value=value, sizes=sizes: layer.check_input(value, sizes),
            lambda layer, value=value, sizes=sizes: layer.check_input(value[..., :-1], sizes),
            lambda layer, value=value, sizes=sizes: layer.check_input(value.float(), sizes),
            lambda layer, value=value, sizes=sizes, good=good: layer.check_forward_args(value, good, sizes),
            lambda layer, value=value, sizes=sizes, bad=bad: layer.check_forward_args(value, bad, sizes),
            lambda layer, good=good: layer.permute_hidden(good, None),
            lambda layer, good=good, rows=rows: layer.permute_hidden(good, torch.arange(rows).flip(0)),
            lambda layer, x=x: layer.check_hidden_size(x, (T, B, I)),
            lambda layer, x=x: layer.check_hidden_size(x, (T, B, H)),
        ]
        if kind.startswith("LSTM"):
            calls.append(lambda layer, value=value, sizes=sizes: layer.get_expected_cell_size(value, sizes))
        for call in calls:
            assert_same_outcome(outcome(lambda call=call: call(ours)), outcome(lambda call=call: call(theirs)))


@kinds
@pytest.mark.parametrize("made", [pair, derived])
def test_weights_that_are_set_through_the_list(kind, made):
    """The list that is there already is taken; another one would reach nothing and is refused."""
    ours, _ = made(kind)
    ours._flat_weights = [getattr(ours, name) for name in ours._flat_weights_names]
    ours._init_flat_weights()
    ours._update_flat_weights()
    before = list(ours.parameters())
    for change in (
        lambda: setattr(ours, "_flat_weights", [weight * 2 for weight in ours._flat_weights]),
        lambda: setattr(ours, "_flat_weights", ours._flat_weights[:1]),
        lambda: ours._flat_weights.__setitem__(0, before[0] * 2),
    ):
        with pytest.raises(InputError, match=r"_flat_weights only lists these.*set the attribute"):
            change()
    assert all(a is b for a, b in zip(ours.parameters(), before, strict=True))
    pickle.dumps(ours)


@kinds
def test_torchs_own_forward_runs_on_our_layer(kind):
    """It reads the members that it needs from ours."""
    ours, theirs = pair(kind, num_layers=2, dtype=torch.float64)
    x, hx = drawn(T, B, I), states(kind, 2, B)
    assert_equal(type(theirs).forward(ours, x, hx)[0], theirs(x, hx)[0])


# ---------------------------------------------------------------- whose instances they are


@modules
def test_the_bases(kind, step):
    """Cells are instances of torch.nn's classes, layers of their base; ours stay what they are."""
    ours, theirs = make(nn, kind, step=step), make(torch.nn, kind, step=step)
    assert isinstance(ours, torch.nn.RNNCellBase if step else torch.nn.RNNBase)
    assert isinstance(ours, type(theirs)) is step
    assert isinstance(ours, nn.Recurrent) is not step


def test_a_layer_of_any_cell_is_none_of_torchs():
    assert not isinstance(nn.Recurrent(recollect.cells.mgu, I, H), torch.nn.RNNBase)


@kinds
@pytest.mark.parametrize("from_torch", [True, False], ids=["from torch.nn", "from ours"])
def test_a_subclass_of_both(kind, from_torch):
    theirs = make(torch.nn, kind)
    layer = copy.deepcopy(theirs) if from_torch else pair(kind)[0]
    parameters = list(layer.parameters())
    assert recollect.convert(layer, subclass=True) is layer
    assert recollect.convert(layer) is layer  # nothing is left to do, and nothing is told
    assert isinstance(layer, type(theirs))
    assert isinstance(layer, getattr(nn, type(theirs).__name__))
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert repr(layer) == repr(theirs)


@kinds
def test_a_subclass_of_both_is_a_layer_of_ours(kind):
    """Calls, gradients, copies, files, moves."""
    ours, theirs = derived(kind, num_layers=2, dtype=torch.float64)
    x, hx = drawn(T, B, I), states(kind, 2, B)
    assert_same(ours, theirs, x, hx)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (
        copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False),
        copy.deepcopy(ours).float().double().share_memory(), type(ours)(I, H, 2, dtype=torch.float64, **KINDS[kind][1]),
    ):  # fmt: skip
        assert type(other) is type(ours)
        other.load_state_dict(theirs.state_dict())
        assert_same(other, theirs, x, hx)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    seen = []
    assert ours.apply(seen.append) is ours
    assert seen == [ours]


def test_a_subclass_of_both_is_saved_as_the_layer_it_is(tmp_path):
    layer = recollect.convert(torch.nn.Sequential(torch.nn.GRU(I, H)), subclass=True)
    recollect.save(layer, tmp_path / "model.safetensors")
    loaded = recollect.load(tmp_path / "model.safetensors")
    assert type(loaded[0]) is nn.GRU
    assert_bits(loaded[0].weight_hh_l0, layer[0].weight_hh_l0)


def test_parametrised_layers_become_subclasses_of_both():
    layer = torch.nn.utils.parametrizations.orthogonal(torch.nn.GRU(I, H), "weight_hh_l0")
    x = drawn(T, B, I, dtype=torch.float32)
    expected = layer(x)[0]
    recollect.convert(layer, subclass=True)
    assert isinstance(layer, torch.nn.GRU)
    assert isinstance(layer, nn.GRU)
    assert_equal(layer(x)[0], expected)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer).__module__ == "recollect.nn.torch_subclasses"
    assert_equal(layer(x)[0], expected)


@pytest.mark.parametrize("subclass", [False, True])
def test_torchs_quantisation_does_not_touch_ours(subclass):
    """It exchanges layers by their exact class."""
    model = recollect.convert(torch.nn.Sequential(torch.nn.LSTM(I, H)), subclass=subclass)
    with pytest.warns(DeprecationWarning, match="quantization"):
        quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.LSTM})
    assert type(quantised[0]) is type(model[0])
    assert_bits(quantised(drawn(T, B, I, dtype=torch.float32))[0], model(drawn(T, B, I, dtype=torch.float32))[0])
