"""A forward pass leaves all that its backward pass reads in PyTorch's keeping, where no change of a tensor harms it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import recollect
from recollect import cells, nn
from recollect.engine import buffers

STEPS, BATCH, INPUTS, HIDDEN = 20, 6, 5, 16


def make(**options):
    torch.manual_seed(0)
    return nn.LSTM(INPUTS, HIDDEN, **options)


# Each is another way through the engine: the short way, the long one with what a call adds, directions side by side,
# a stack of layers, layers at the same time, segments.
WAYS = {
    "short": {},
    "zoneout": {"zoneout": 0.2, "recurrent_dropout": 0.1},
    "directions": {"bidirectional": True},
    "layers": {"num_layers": 2},
    "both": {"num_layers": 2, "bidirectional": True},
    "segments": {"checkpoint": 5},
}


@pytest.fixture(params=WAYS)
def layer(request):
    return make(**WAYS[request.param])


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(STEPS, BATCH, INPUTS)


def gradients(layer, x):
    layer.zero_grad()
    torch.manual_seed(2)
    y, (h, c) = layer(x)
    (y.square().sum() + (h * c).sum()).backward()
    return [parameter.grad.clone() for parameter in layer.parameters()]


def equal(left, right):
    return all(map(torch.equal, left, right))


@pytest.fixture
def lent(monkeypatch):
    """Weak references to the memory that the kernels keep for their backward passes, as they are lent."""
    monkeypatch.setattr(buffers._pool, "least", 0)  # else it is fresh where it is small
    references, tensor = [], buffers.Buffer.tensor

    def noted(self):
        made = tensor(self)
        references.append(weakref.ref(self._loan))
        return made

    monkeypatch.setattr(buffers.Buffer, "tensor", noted)
    return references


def alive(references):
    gc.collect()
    return sum(reference() is not None for reference in references)


def test_memory_goes_when_the_backward_pass_has_run(layer, x, lent):
    loss = layer(x)[0].sum()
    loss.backward()
    assert lent
    assert alive(lent) == 0
    assert loss.grad_fn is not None  # the graph is still there


def test_memory_stays_for_a_graph_that_is_retained(layer, x):
    loss = layer(x)[0].sum()
    found = []
    for retain in (True, False):
        layer.zero_grad()
        loss.backward(retain_graph=retain)
        found.append([parameter.grad.clone() for parameter in layer.parameters()])
    assert equal(*found)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_memory_goes_with_a_graph_that_nobody_goes_back_through(layer, x, lent):
    y = layer(x)[0]
    del y
    assert alive(lent) == 0


def test_a_sum_of_losses_keeps_no_memory(x, lent):
    layer, total = make(), torch.zeros(())
    for _ in range(5):
        loss = layer(x)[0].sum()
        loss.backward()
        total = total + loss
        assert alive(lent) == 0
    assert total.requires_grad


def kept_bytes(function):
    """Bytes of all that hooks are shown, a storage counted once."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(seen.values())


def test_hooks_see_all_that_is_kept(layer, x):
    states = 0 if layer.checkpoint else 6  # i f g o c tanh(c) of each unit, or so; in segments none of them
    runs = layer.num_layers * (2 if layer.bidirectional else 1)
    assert kept_bytes(lambda: layer(x)) >= states * runs * STEPS * BATCH * HIDDEN * 4


def test_memory_that_is_moved_elsewhere_comes_back(layer, x, lent):
    expected = gradients(layer, x)
    lent.clear()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        torch.manual_seed(2)
        layer.zero_grad()
        y, (h, c) = layer(x)
        loss = y.square().sum() + (h * c).sum()
        assert alive(lent) == 0  # only the copies are left
        loss.backward()
    assert equal([parameter.grad for parameter in layer.parameters()], expected)


def test_a_checkpoint_keeps_nothing(layer, x, lent):
    expected = gradients(layer, x)
    lent.clear()
    layer.zero_grad()
    torch.manual_seed(2)
    y, (h, c) = checkpoint(layer, x, use_reentrant=False)
    assert alive(lent) == 0
    (y.square().sum() + (h * c).sum()).backward()
    assert equal([parameter.grad for parameter in layer.parameters()], expected)


def halves_and_back(layer):
    layer.half()
    layer.float()


def other_data(layer):
    for parameter in layer.parameters():
        parameter.data = torch.full_like(parameter, 100.0)


def smaller_data(layer):
    for parameter in layer.parameters():
        parameter.data = torch.zeros(1)


CHANGES = {
    "half and back": halves_and_back,
    "float64 and back": lambda layer: layer.double().float(),
    "half": torch.nn.Module.half,
    "bfloat16": torch.nn.Module.bfloat16,
    "float64": torch.nn.Module.double,
    "other data": other_data,
    "smaller data": smaller_data,
}


def edges_of(tensors):
    """Where the graph ends; a tensor whose type has changed is the end of other graphs only."""
    return [torch.autograd.graph.get_gradient_edge(tensor) for tensor in tensors]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("inputs", ["data", "leaf", "inner"])
def test_gradients_are_those_of_the_forward_pass(layer, x, inputs, change):
    """As torch.nn's are: other memory for a parameter, or for x, reaches nothing that was already computed."""
    leaf = x.requires_grad_(inputs != "data")

    def grads(change=lambda layer: None, swap=False):
        torch.manual_seed(2)
        given = leaf.detach().clone().requires_grad_(leaf.requires_grad)
        y, (h, c) = layer(given * 1.0 if inputs == "inner" else given)
        edges = edges_of([*layer.parameters(), *([given] if given.requires_grad else [])])
        loss = y.square().sum() + (h * c).sum()
        change(layer)
        if swap:
            given.data = torch.full((1, 1, 1), 3.0)
        return torch.autograd.grad(loss, edges)

    before = [parameter.data for parameter in layer.parameters()]
    expected = grads()
    found = grads(change, swap=inputs != "inner")
    for parameter, data in zip(layer.parameters(), before, strict=True):
        parameter.data = data
    assert equal(found, expected)


def test_second_derivatives_say_that_a_parameter_has_changed(x):
    layer = make()
    y = layer(x.requires_grad_())[0]
    layer.double()
    with pytest.raises(recollect.errors.InputError, match="other numbers since the forward pass"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_a_change_in_place_is_torchs_error(layer, x):
    for changed in (x, layer.weight_ih_l0):
        y = layer(x)[0]
        with torch.no_grad():
            changed.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


WRONG = {"type": lambda t: t.double(), "shape": lambda t: t[..., :1], "nothing": lambda t: t.new_zeros(0)}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_a_hook_brings_back_is_looked_at(layer, x, wrong):
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, wrong):
        y = layer(x)[0]
    with pytest.raises((recollect.errors.InputError, RuntimeError)):
        y.sum().backward()


def gradients_around(layer, change, x, **arguments):
    y, _ = layer(x, **arguments)
    edges = edges_of(layer.parameters())
    change(layer)
    return torch.autograd.grad((y.data if isinstance(y, PackedSequence) else y).square().sum(), edges)


def kinds_of_rows(x):
    lengths = torch.tensor([3, 20, 0, 7, 1, 5])
    packed = pack_padded_sequence(x, lengths.clamp(min=1), enforce_sorted=False)
    return [(x, {"lengths": lengths}), (packed, {}), (x.transpose(0, 1).contiguous().transpose(0, 1), {})]


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("cell", [cells.lstm, cells.peephole_lstm], ids=str)
def test_so_are_those_of_padding_of_packed_rows_and_of_strides(x, kind, cell):
    rows, arguments = kinds_of_rows(x)[kind]
    torch.manual_seed(0)
    layer = nn.Recurrent(cell, INPUTS, HIDDEN)
    expected = gradients_around(layer, lambda layer: None, rows, **arguments)
    assert equal(gradients_around(layer, other_data, rows, **arguments), expected)
