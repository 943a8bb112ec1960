"""Nothing reaches a kernel but numbers in memory of the right size and type, on the way forward and on the way back.

What goes wrong here kills the process or corrupts its heap, so each test is a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import faulthandler, itertools, warnings
faulthandler.enable()
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
import recollect
from recollect import nn
from recollect.errors import InputError

torch.manual_seed(0)
layer = nn.LSTM(5, 16)
x = torch.randn(20, 6, 5)
states = (torch.randn(1, 6, 16), torch.randn(1, 6, 16))

def refused(call, *words):
    try:
        call()
    except InputError as error:
        assert all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError("it was taken")

def emptied(tensor, nbytes=0):
    copy = tensor.detach().clone()
    copy.untyped_storage().resize_(nbytes)
    return copy
"""


def run(script):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BEGIN + script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("options", ["", "num_layers=2", "bidirectional=True", "zoneout=0.1", "checkpoint=3"])
def test_a_packed_sequence_whose_parts_do_not_fit(options):
    run(
        f"layer = nn.LSTM(5, 16, {options})"
        + """
data, sizes = torch.randn(12, 5), [4, 4, 2, 1, 1]
right = torch.tensor(sizes)
layer(PackedSequence(data, right))  # it is the batch_sizes alone
wrong = [
    [4, 4, 2, 1], [4, 4, 2, 1, 1, 1], [40, 4, 2, 1, 1], [1, 1, 2, 4, 4], [4, 2, 4, 1, 1], [12, 12], [13], [11],
    [6, 4, 3, -1], [-4, 4, 4, 4, 4], [4, 4, 4, 0], [0, 0, 0], [0], [], [2**62, 2**62], [2**63 - 1, 2],
]
for rows in wrong:
    with torch.set_grad_enabled(len(rows) % 2 == 0):
        refused(lambda: layer(PackedSequence(data, torch.tensor(rows, dtype=torch.int64))), "batch_sizes")
for tensor in (right.int(), right.double(), right.unsqueeze(0), torch.tensor(12)):
    refused(lambda: layer(PackedSequence(data, tensor)), "batch_sizes")
refused(lambda: layer(PackedSequence(data, emptied(right))), "batch_sizes")
refused(lambda: layer(PackedSequence(emptied(data), right)), "memory")
layer.eval()
order = torch.tensor([2, 0, 3, 1])
inverse = order.argsort()
y, (h, _) = layer(PackedSequence(data, right, order, inverse))
plain = layer(PackedSequence(data, right))[1][0]
assert torch.equal(h, plain[:, inverse])
bad = [
    (order, order), (order, None), (None, order), (order, inverse[:3]), (order[:3], inverse), (order + 1, inverse),
    (order, inverse - 1), (torch.zeros(4, dtype=torch.int64), inverse), (order, torch.tensor([0, 1, 2, 2**40])),
    (order.float(), inverse), (order, inverse.int()), (torch.arange(5), torch.arange(5)),
]
for pair in bad:
    # Not its constructor, which finds the inverse by itself.
    packed = tuple.__new__(PackedSequence, (data, right, *pair))
    refused(lambda: layer(packed), "indices")
"""
    )


def test_tensors_without_memory():
    run(
        """
for name in ("x", "state", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "lengths", "resets"):
    for nbytes, grad, lengths in itertools.product((0, 24), (False, True), (None, [3, 20, 0, 7, 1, 5])):
        layer = nn.LSTM(5, 16)
        layer(x)  # a good call, as which the next one may pass
        given = {"lengths": None if lengths is None else torch.tensor(lengths)}
        args = [x]
        if name == "x":
            args = [emptied(x, nbytes)]
            if nbytes:
                args.append(states)  # the long way
        elif name == "state":
            args.append((states[0], emptied(states[1])))
        elif name == "lengths":
            given["lengths"] = emptied(torch.tensor([3, 20, 0, 7, 1, 5]))
        elif name == "resets":
            given["resets"] = emptied(torch.zeros(20, 6, dtype=torch.bool))
        else:
            getattr(layer, name).untyped_storage().resize_(nbytes)
            refused(lambda: layer(x, lengths=[0] * 6), "memory")
        with torch.set_grad_enabled(grad):
            refused(lambda: layer(*args, **given), "memory")
"""
    )


def test_what_passed_once_opens_the_gate_to_nothing_else():
    run(
        """
from recollect.engine.readable import Gate, addresses

shapes, dtype = [(4, 4), (4,), (1, 2, 3)], torch.float32
class Own(torch.Tensor):
    pass
class Elsewhere(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return super().__torch_function__(function, types, args, kwargs or {})
square = torch.randn(4, 4)
batched = []
torch.func.vmap(lambda each: batched.append(each) or each)(torch.randn(7, 4, 4))
bad = [
    square.t(), square.double(), square.half(), torch.randn(4, 5), torch.randn(16), torch.randn(4, 8)[:, ::2],
    torch._neg_view(square), square.to_sparse(), square.to_mkldnn(), torch.empty(4, 4, device="meta"),
    torch._efficientzerotensor(4, 4), torch._efficientzerotensor(8, 4)[4:], emptied(square), emptied(square, 60),
    square.expand(4, 4, 4)[0].transpose(0, 1), torch.randn(4, 1).expand(4, 4), square.as_subclass(Elsewhere),
    square.to(torch.complex64), batched[0],
]
late = torch.randn(9, 4)[5:]
late.untyped_storage().resize_(8 * 16)
bad.append(late)
good = [square, square.clone().requires_grad_(), torch.nn.Parameter(square.clone()), torch.randn(9, 4)[5:],
        square.as_subclass(Own), square.t().t(), square]
for inference in (False, True):
    gate = Gate(shapes, dtype)
    with torch.inference_mode(inference):
        others = torch.randn(4), torch.randn(1, 2, 3)
        for tensor in good:
            for _ in range(2):  # the second time by what passed
                assert gate.addresses((tensor, *others)) == [each.data_ptr() for each in (tensor, *others)]
        assert gate._guards[inference].check(square, *others)
        for tensor in bad:
            assert gate.addresses((square, *others)) is not None
            assert gate.addresses((tensor, *others)) is None, (tensor.shape, tensor.dtype, tensor.layout)
            assert addresses((tensor, *others), shapes, dtype) is None
"""
    )


def test_tensors_without_memory_on_the_longer_ways():
    run(
        """
for options in ({"checkpoint": 3}, {"num_layers": 2}, {"zoneout": 0.1}, {"learned_initial_state": True}):
    layer = nn.LSTM(5, 16, **options)
    runs = options.get("num_layers", 1)
    for nbytes in (0, 24):
        refused(lambda: layer(emptied(x, nbytes)), "memory")
        refused(lambda: layer(x, (emptied(torch.zeros(runs, 6, 16), nbytes), torch.zeros(runs, 6, 16))), "memory")
        y, (h, c) = layer(x)
        if runs == 1:  # else torch's own operations are the first to meet it
            gradient = emptied(torch.ones(1, 6, 16), nbytes)
            refused(lambda: torch.autograd.grad(h, layer.weight_ih_l0, gradient), "memory")
layer.initial_c_l0.untyped_storage().resize_(0)
refused(lambda: layer(x), "memory")
cell = nn.LSTMCell(5, 16)
refused(lambda: cell(emptied(x[0])), "memory")
refused(lambda: cell(x[0], (emptied(torch.zeros(6, 16)), torch.zeros(6, 16))), "memory")
refused(lambda: nn.LSTM(5, 16)(emptied(x, 24)), "memory")
given, layer = x.clone(), nn.LSTM(5, 16)
h0 = torch.zeros(1, 6, 16, requires_grad=True)
y, _ = layer(given, (h0, torch.zeros(1, 6, 16)))
given.untyped_storage().resize_(24)
refused(lambda: torch.autograd.grad(y.sum(), h0, create_graph=True), "memory")
"""
    )


def test_zeros_that_are_nowhere_in_memory_are_zeros():
    run(
        """
def zeros(*shape):
    return torch._efficientzerotensor(shape)

expected = layer(torch.zeros(20, 6, 5), (torch.zeros(1, 6, 16), torch.zeros(1, 6, 16)))
for grad in (False, True):
    with torch.set_grad_enabled(grad):
        found = layer(zeros(20, 6, 5), (zeros(1, 6, 16), zeros(1, 6, 16)))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(layer(zeros(20, 6, 5))[0], expected[0])
# Parts of them have an address that is not 0, and is none.
for grad in (False, True):
    with torch.set_grad_enabled(grad):
        assert torch.equal(layer(zeros(25, 6, 5)[5:])[0], expected[0])
        assert torch.equal(layer(zeros(20, 6, 9)[:, :, 4:])[0], expected[0])
        stack = nn.LSTM(5, 16, 2)
        wanted = stack(torch.zeros(20, 6, 5), (torch.zeros(2, 6, 16), torch.zeros(2, 6, 16)))[0]
        assert torch.equal(stack(zeros(20, 6, 5), (zeros(2, 6, 16), zeros(2, 6, 16)))[0], wanted)
        whole = torch.randn(25, 6, 5)
        part = whole[5:]
        whole.untyped_storage().resize_(0)
        refused(lambda: layer(part), "memory")
y, (h, c) = layer(x.requires_grad_())
found = torch.autograd.grad([y, h, c], [x, *layer.parameters()], [zeros(20, 6, 16), zeros(1, 6, 16), zeros(1, 6, 16)])
assert all(not gradient.any() for gradient in found)
"""
    )


def test_gradients_of_any_kind():
    run(
        """
x.requires_grad_()
lengths = torch.tensor([3, 20, 0, 7, 1, 5])
for given in ({}, {"lengths": lengths}):
    wanted = None
    ones = torch.ones(20, 6, 16)
    kinds = [ones, ones.to_sparse(), torch.ones(1, 1, 1).expand(20, 6, 16), torch._neg_view(-ones), ones.double(),
             torch.ones(6, 16, 20).permute(2, 0, 1)]
    for gradient in kinds:
        y, (h, c) = layer(x, **given)
        found = torch.autograd.grad(y, [x, *layer.parameters()], gradient)
        wanted = wanted or found
        assert all(map(torch.equal, found, wanted))
    y, (h, c) = layer(x, **given)
    refused(lambda: torch.autograd.grad(y, [x], emptied(ones)), "memory")
    y, (h, c) = layer(x, **given)
    refused(lambda: torch.autograd.grad(h, [x], emptied(torch.ones(1, 6, 16))), "memory")
"""
    )


def test_storages_that_shrink_between_forward_and_backward():
    run(
        """
for options in ({}, {"num_layers": 2}, {"bidirectional": True}, {"checkpoint": 7}, {"zoneout": 0.1}):
    for name in ("x", "leaf", "weight_ih_l0", "weight_hh_l0"):
        for nbytes in (0, 24):
            layer = nn.LSTM(5, 16, **options)
            given = x.clone().requires_grad_(name == "leaf")
            y, _ = layer(given)
            loss = y.sum()
            tensor = getattr(layer, name) if name.startswith("weight") else given
            tensor.untyped_storage().resize_(nbytes)
            refused(loss.backward, "memory")
# Memory that comes back with its numbers is as good as the one before, as with sharded parameters.
layer = nn.LSTM(5, 16)
expected = torch.autograd.grad(layer(x)[0].sum(), list(layer.parameters()))
loss, copies = layer(x)[0].sum(), [parameter.detach().clone() for parameter in layer.parameters()]
for parameter in layer.parameters():
    parameter.untyped_storage().resize_(0)
for parameter, copy in zip(layer.parameters(), copies):
    parameter.untyped_storage().resize_(copy.untyped_storage().nbytes())
    torch.frombuffer(memoryview(copy.numpy()).cast("B"), dtype=torch.float32)
    parameter.data.copy_(copy)
assert all(map(torch.equal, torch.autograd.grad(loss, list(layer.parameters())), expected))
"""
    )


def test_another_default_device_reaches_no_kernel():
    run(
        """
lengths = [3, 20, 0, 7, 1, 5]
def results():
    found = []
    resets = torch.zeros(20, 6, dtype=torch.bool, device="cpu")
    for given in ({}, {"lengths": lengths}, {"hx": states}, {"resets": resets}):
        layer.zero_grad()
        y, (h, c) = layer(x, **given)
        (y.sum() + c.sum()).backward()
        found += [y.detach(), h.detach(), *(parameter.grad for parameter in layer.parameters())]
    packed = pack_padded_sequence(x, torch.tensor([3, 20, 1, 7, 1, 5], device="cpu"), enforce_sorted=False)
    return [*found, layer(packed)[0].data.detach()]
expected = results()
recollect.release_buffers()
torch.set_default_device("meta")
assert all(map(torch.equal, results(), expected))
noise = {"zoneout": 0.1, "recurrent_dropout": 0.2}
for noisy in (nn.LSTM(5, 16, **noise, device="cpu"), nn.GRU(5, 16, 2, dropout=0.1, device="cpu")):
    assert noisy(x)[0].device.type == "cpu"
"""
    )


def test_parameters_that_are_no_numbers_in_memory_run_on_the_reference():
    run(
        """
from torch.utils._pytree import tree_map

class Elsewhere(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
    def __init__(self, inner):
        self.inner = inner
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        inner = lambda value: value.inner if isinstance(value, cls) else value
        return function(*tree_map(inner, args), **tree_map(inner, kwargs or {}))

class Named(torch.nn.Parameter):
    pass

with torch.no_grad():
    expected = layer(x)[0]
    for name in list(layer._parameters):
        layer._parameters[name] = Named(layer._parameters[name].detach())
    assert torch.equal(layer(x)[0], expected)  # a class that changes nothing is as good as torch's
    layer._parameters["weight_hh_l0"] = Elsewhere(layer._parameters["weight_hh_l0"].detach())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.allclose(layer(x)[0], expected, atol=1e-6)
    assert "Elsewhere" in str(caught[0].message)
"""
    )
