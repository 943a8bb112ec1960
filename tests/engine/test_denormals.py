"""Denormal numbers count as 0 in a kernel, and nowhere else: whoever calls one keeps the mode that it had."""

from __future__ import annotations

import ctypes
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from llvmlite import ir

import recollect
from recollect import cells, nn
from recollect.engine import calls
from recollect.engine.llvm import kernels
from recollect.engine.llvm.division import Division
from recollect.engine.llvm.machine import Code, compile_module, host
from recollect.engine.llvm.values import I64, POINTER, VOID
from tolerances import GRADIENT, VALUE, assert_bits, assert_equal

pytestmark = pytest.mark.skipif(not host().mode_register, reason="this machine's mode is left alone")

DENORMAL = {torch.float32: 1e-40, torch.float64: 1e-310}
DTYPES = pytest.mark.parametrize("dtype", DENORMAL, ids=str)
DIVISIONS = [Division(1, False), Division(2, False), Division(2, True)]


@pytest.fixture(autouse=True)
def _llvm():
    with recollect.set_backend("llvm"):
        yield


@cache
def mode_code():
    """A function that returns this thread's MXCSR or FPCR."""
    module = ir.Module()
    builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(I64, []), "mode").append_basic_block())
    if host().mode_register == "mxcsr":
        read = ir.Function(module, ir.FunctionType(VOID, [POINTER]), "llvm.x86.sse.stmxcsr")
        place = builder.bitcast(builder.alloca(ir.IntType(32)), POINTER)
        builder.call(read, [place])
        builder.ret(builder.zext(builder.load(place, typ=ir.IntType(32)), I64))
    else:
        read = ir.Function(module, ir.FunctionType(I64, []), "llvm.aarch64.get.fpcr")
        builder.ret(builder.call(read, []))
    return Code(compile_module(str(module), host()), host())


def mode():
    return ctypes.CFUNCTYPE(ctypes.c_int64)(mode_code().address("mode"))()


def layer_and_input(name, dtype, batch=8):
    torch.manual_seed(0)
    return nn.Recurrent(cells.by_name(name), 3, 3, dtype=dtype), torch.randn(20, batch, 3, dtype=dtype)


def train(layer, x):
    leaf = x.clone().requires_grad_()
    y, _ = layer(leaf)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])]


@DTYPES
def test_what_would_be_denormal_is_0(dtype):
    layer, x = layer_and_input("rnn_relu", dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.weight_ih_l0.copy_(torch.eye(3))
        tiny = x.new_full(x.shape, DENORMAL[dtype])
        assert (tiny != 0).all()
        assert (layer(tiny)[0] == 0).all()
        layer.weight_ih_l0.mul_(1e-4)
        assert (layer(tiny * 1e4)[0] == 0).all()  # the product would be denormal
        assert (layer(tiny * 1e8)[0] > 0).all()
    with recollect.set_backend("reference"), torch.no_grad():
        assert (layer(tiny * 1e4)[0] > 0).all()


@DTYPES
@pytest.mark.parametrize("name", ["lstm", "rnn_tanh"])
def test_sequences_that_decay_stay_near_the_reference(name, dtype):
    """States and gradients fall through all magnitudes to 0."""
    torch.manual_seed(0)
    layer = nn.Recurrent(cells.by_name(name), 3, 3, bias=False, dtype=dtype)
    x = torch.zeros(400, 4, 3, dtype=dtype)
    x[0] = 1.0
    with torch.no_grad():
        layer.weight_hh_l0.mul_(0.05)
    found = train(layer, x)
    with recollect.set_backend("reference"):
        true = train(layer.double(), x.double())
    assert_equal(found[0], true[0], VALUE)
    for mine, each in zip(found[1:], true[1:], strict=True):
        assert_equal(mine, each, GRADIENT)
    normal = torch.finfo(dtype).tiny
    for each in found:
        assert ((each == 0) | (each.abs() >= normal)).all()


@pytest.mark.parametrize("name", ["lstm", "slstm"])
def test_ordinary_numbers_keep_their_bits(name, monkeypatch):
    """Those that a kernel computes which leaves the mode alone."""
    layer, x = layer_and_input(name, torch.float32)
    flushed = train(layer, x)
    monkeypatch.setattr(kernels, "host", lambda: dataclasses.replace(host(), mode_register=""))
    monkeypatch.setattr(kernels, "_CACHE", {})
    for mine, true in zip(train(layer, x), flushed, strict=True):
        assert_bits(mine, true)
    with torch.no_grad():
        assert (layer(torch.full_like(x, 1e-40))[0] != 0).any()


@pytest.fixture(params=DIVISIONS, ids=str)
def divided(request, monkeypatch):
    """Each call is divided in this way."""
    monkeypatch.setattr(calls, "divide", lambda *_: request.param)


@pytest.mark.usefixtures("divided")
@pytest.mark.parametrize("flush", [False, True])
def test_the_caller_keeps_its_mode(flush):
    layer, x = layer_and_input("lstm", torch.float32)

    def work(_):
        before = torch.set_flush_denormal(flush), mode()
        train(layer, x)
        with torch.no_grad():
            layer(x)
        after = mode()
        torch.set_flush_denormal(False)
        return before[1] == after

    assert work(0)
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(4)))


@pytest.mark.usefixtures("divided")
def test_torch_computes_with_denormals_after_a_call():
    """On all threads of the team that it shares with us."""
    torch.set_num_threads(2)
    layer, x = layer_and_input("gru", torch.float32)
    many = torch.full((1 << 20,), 1e-40)
    train(layer, x)
    assert (many * 1.5 > 1e-40).all()
    assert (many + many > 1e-40).all()
