"""What a torch.nn.Module is used for beside its call, on our six classes as on torch's."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils.rnn import pack_sequence

from against_torch import (
    STEP_KINDS,
    I,
    T,
    assert_same,
    assert_same_bits,
    assert_same_results,
    big,
    drawn,
    given,
    kinds,
    libraries,
    make,
    modules,
    pair,
    projections_warn,
    start,
    suffix,
    tensors,
)
from recollect import nn
from tolerances import GRADIENT, VALUE, assert_bits, assert_equal

pytestmark = projections_warn

# Once in a process we say that a call does not run on the kernels; here it is meant to.
on_the_reference = pytest.mark.filterwarnings("ignore:recollect runs on the reference:UserWarning")

# ---------------------------------------------------------------- parameters and their names


@kinds
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bias=False"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["D=1", "D=2"])
def test_all_weights(kind, bias, bidirectional):
    """``all_weights``: a list for each layer and direction, of the very parameters, in torch's order."""
    ours, theirs = pair(kind, num_layers=2, bias=bias, bidirectional=bidirectional)
    names = {id(each): name for name, each in ours.named_parameters()}
    true_names = {id(each): name for name, each in theirs.named_parameters()}
    mine = [[names[id(each)] for each in group] for group in ours.all_weights]
    assert mine == [[true_names[id(each)] for each in group] for group in theirs.all_weights]


@kinds
def test_flatten_parameters(kind):
    """``flatten_parameters``: "Otherwise, it's a no-op"."""
    layer = make(nn, kind)
    before = [(each.data_ptr(), each.clone()) for each in layer.parameters()]
    assert layer.flatten_parameters() is None
    for each, (address, value) in zip(layer.parameters(), before, strict=True):
        assert each.data_ptr() == address
        assert_bits(each, value)


PRINTED = [
    dict(each)
    for n in range(3)
    for each in itertools.combinations(
        [
            ("num_layers", 2),
            ("bias", False),
            ("batch_first", True),
            ("dropout", 0.25),
            ("bidirectional", True),
        ],
        n,
    )
    if "dropout" not in dict(each) or "num_layers" in dict(each)  # torch warns where there is nothing to drop out
]


@kinds
def test_the_printed_form_of_a_layer(kind):
    """``repr``, which is what a model prints."""
    for options in PRINTED:
        assert repr(make(nn, kind, **options)) == repr(make(torch.nn, kind, **options))


@pytest.mark.parametrize("kind", STEP_KINDS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bias=False"])
def test_the_printed_form_of_a_cell(kind, bias):
    """``repr``, which is what a model prints."""
    assert repr(make(nn, kind, step=True, bias=bias)) == repr(make(torch.nn, kind, step=True, bias=bias))


@modules
def test_the_order_of_the_parameters(kind, step):
    """``named_parameters``, ``parameters``, ``state_dict``; and no buffers or children."""
    ours, theirs = big(kind, step)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_bits(parameters_to_vector(ours.parameters()), parameters_to_vector(theirs.parameters()))
    assert not list(ours.named_buffers())
    assert not list(ours.children())


@modules
def test_a_vector_of_all_parameters(kind, step):
    """``vector_to_parameters`` replaces the data of every parameter; the next call sees it."""
    ours, theirs = big(kind, step)
    vector = drawn(len(parameters_to_vector(ours.parameters())), seed=4)
    for module in (ours, theirs):
        vector_to_parameters(vector, module.parameters())
    assert_same_results(ours(given(step)), theirs(given(step)))


# ---------------------------------------------------------------- state_dict


@modules
def test_state_dict_both_ways(kind, step):
    """What torch's module saved is loaded by ours, and the other way."""
    ours, theirs = (make(lib, kind, step=step, dtype=torch.float64) for lib in (nn, torch.nn))
    for source, target in ((theirs, ours), (ours, theirs)):
        with torch.no_grad():
            for each in source.parameters():
                each.copy_(drawn(*each.shape, seed=each.numel()))
        report = target.load_state_dict(source.state_dict(), strict=True)
        assert not report.missing_keys
        assert not report.unexpected_keys
        assert_same_results(ours(given(step)), theirs(given(step)))


@libraries
@modules
def test_a_state_dict_that_does_not_fit(kind, step, library):
    """``load_state_dict(strict=True)`` names what is missing, what is too much and what has another shape."""
    module = make(library, kind, step=step)
    name, state = f"weight_hh{suffix(step)}", module.state_dict()
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        module.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"foreign"'):
        module.load_state_dict(state | {"foreign": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        module.load_state_dict(state | {name: torch.zeros(1, 1)})
    report = module.load_state_dict({name: state[name], "foreign": torch.zeros(1)}, strict=False)
    assert report.unexpected_keys == ["foreign"]
    assert set(report.missing_keys) == set(state) - {name}


@modules
def test_a_state_dict_that_is_assigned(kind, step):
    """``load_state_dict(assign=True)`` takes the tensors as they are, dtype included."""
    ours, theirs = pair(kind, step=step)
    state = {name: value.double() for name, value in theirs.state_dict().items()}
    for module in (ours, theirs):
        module.load_state_dict(state, assign=True)
    assert_same(ours, theirs, given(step), start(kind, step))


@modules
def test_a_state_dict_in_a_file(kind, step):
    """``torch.save`` of a state_dict, ``torch.load(weights_only=True)``: into torch's module and into ours."""
    ours, theirs = big(kind, step)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for module in big(kind, step):
        torch.nn.init.zeros_(module.get_parameter(f"weight_hh{suffix(step)}"))
        module.load_state_dict(state)
        assert_same_results(module(given(step)), theirs(given(step)))


# ---------------------------------------------------------------- copies


@modules
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
def test_a_copy_stands_alone(kind, step, copied):
    """A copy computes the same, has its own parameters and its own mode, and can be trained."""
    module, _ = big(kind, step)
    module.eval()
    other = copied(module)
    assert type(other) is type(module)
    assert repr(other) == repr(module)
    assert not other.training
    x = given(step)
    expected = [each.clone() for each in tensors(module(x))]
    assert_same_bits(other(x), expected)
    tensors(other(x))[0].sum().backward()
    assert all(each.grad is None for each in module.parameters())
    with torch.no_grad():
        for each in other.parameters():
            each.zero_()
    assert_same_bits(module(x), expected)


@modules
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"]
)
def test_what_a_copy_keeps(kind, step, copied):
    """Every public attribute that is torch's too."""
    ours, theirs = big(kind, step)
    names = [n for n, v in vars(theirs).items() if not n.startswith("_") and isinstance(v, str | int | float)]
    assert "hidden_size" in names
    other = copied(ours)
    assert {n: getattr(other, n) for n in names} == {n: getattr(theirs, n) for n in names}


# ---------------------------------------------------------------- dtypes and devices


@modules
def test_to_double(kind, step):
    """``.double()`` and ``.to(dtype)`` in place, the same Parameter objects."""
    ours, theirs = pair(kind, step=step)
    parameters = list(ours.parameters())
    assert ours.double() is ours
    assert all(a is b for a, b in zip(ours.parameters(), parameters, strict=True))
    assert {each.dtype for each in ours.parameters()} == {torch.float64}
    assert_same(ours, theirs.to(torch.float64), given(step), start(kind, step))


@on_the_reference
@modules
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_precision(kind, step, dtype):
    """``.half()`` and ``.bfloat16()`` run: as near to float64 as the dtype allows, with gradients."""
    ours, theirs = pair(kind, step=step, dtype=torch.float64)
    module = copy.deepcopy(ours).to(dtype)
    x, hx = given(step), start(kind, step)
    low = tuple(each.to(dtype) for each in hx) if isinstance(hx, tuple) else hx.to(dtype)
    results, true = tensors(module(x.to(dtype), low)), tensors(theirs(x, hx))
    for mine, expected in zip(results, true, strict=True):
        assert mine.dtype == dtype
        assert_equal(mine, expected, VALUE)
    results[0].sum().backward()
    true[0].sum().backward()
    for mine, expected in zip(module.parameters(), theirs.parameters(), strict=True):
        assert_equal(mine.grad, expected.grad, GRADIENT)


@on_the_reference
@modules
def test_the_meta_device(kind, step):
    """``.to("meta")`` and a call there: shapes without numbers; ``to_empty`` brings it back."""
    ours, theirs = (module.to("meta") for module in pair(kind, step=step))
    x = given(step, torch.float32).to("meta")
    mine, true = tensors(ours(x)), tensors(theirs(x))
    assert [(each.shape, each.device.type) for each in mine] == [(each.shape, "meta") for each in true]
    back = ours.to_empty(device="cpu")
    back.reset_parameters()
    assert all(each.isfinite().all() for each in tensors(back(given(step, torch.float32))))


@modules
def test_shared_memory(kind, step):
    """``share_memory()``: the parameters move, and are read where they are."""
    module, _ = big(kind, step)
    x = given(step)
    expected = tensors(module(x))
    assert module.share_memory() is module
    assert all(each.is_shared() for each in module.parameters())
    assert_same_bits(module(x), expected)


LOW = {torch.float32: 4e-2, torch.bfloat16: 4e-2}  # autocast computes in bfloat16, and may return it


@on_the_reference
@modules
@pytest.mark.parametrize("low", [False, True], ids=["float32 input", "bfloat16 input"])
def test_autocast(kind, step, low):
    """Under ``torch.autocast("cpu")`` a float32 module takes float32 and bfloat16, and its gradients are float32.

    torch returns bfloat16 from some kinds and float32 from others; either will do."""
    ours, theirs = pair(kind, step=step)
    x, found = given(step, torch.float32), []
    x = x.to(torch.bfloat16) if low else x
    for module in (ours, theirs):
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                results = tensors(module(x))
        except RuntimeError as error:  # oneDNN has no bfloat16 LSTM for CPUs without AVX-512
            if module is ours or "primitive descriptor" not in str(error):
                raise
            results = tensors(module(x.float()))
        results[0].float().sum().backward()
        found.append((results, [each.grad for each in module.parameters()]))
    (mine, gradients), (true, true_gradients) = found
    for each, expected in zip(mine, true, strict=True):
        assert_equal(each, expected, LOW)
    for each, expected in zip(gradients, true_gradients, strict=True):
        assert each.dtype == torch.float32
        assert_equal(each, expected, {torch.float32: 2e-1})


@on_the_reference
@kinds
def test_autocast_of_a_packed_sequence(kind):
    """The same for a packed sequence."""
    ours, theirs = pair(kind)
    packed = pack_sequence([drawn(T, I, dtype=torch.float32), drawn(2, I, dtype=torch.float32, seed=1)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (mine, _), (true, _) = ours(packed), theirs(packed)
    assert_equal(mine.data, true.data, LOW)
