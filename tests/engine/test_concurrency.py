"""Threads inside a kernel, kernels inside threads, and processes that were forked."""

from __future__ import annotations

import multiprocessing
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

import recollect
from recollect import cells, nn
from recollect.engine.llvm import kernels
from tolerances import GRADIENT, assert_bits, assert_equal


def large(cell, **options):
    """A layer and an input that are worth more than one thread."""
    torch.manual_seed(2)
    layer = nn.Recurrent(cell, 63, 33, **options)
    return layer, torch.randn(30, 29, 63)


@pytest.fixture(autouse=True)
def _llvm():
    with recollect.set_backend("llvm"):
        yield


@pytest.mark.parametrize("lengths", [None, [(7 * row) % 31 for row in range(29)]], ids=["dense", "lengths"])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
def test_the_number_of_threads_changes_no_bit_of_the_output(name, lengths):
    layer, x = large(cells.by_name(name), bidirectional=True)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with torch.no_grad():
            silent = layer(x, lengths=lengths)
        leaf = x.clone().requires_grad_()
        y, final = layer(leaf, lengths=lengths)
        layer.zero_grad()
        (y.square().sum() + (final if name != "lstm" else final[1]).sum()).backward()
        finals = (*final, *silent[1]) if name == "lstm" else (final, silent[1])
        found.append(((y, silent[0], *finals), [leaf.grad, *(each.grad.clone() for each in layer.parameters())]))
    for outputs, gradients in found[1:]:
        for each, alone in zip((*outputs, *gradients), (*found[0][0], *found[0][1]), strict=True):
            assert_bits(each, alone)


def test_torchs_number_of_threads_is_said_to_be_respected():
    layer, x = large(cells.lstm)
    torch.set_num_threads(3)
    assert "up to 3 thread(s)" in layer.backend_for(x)


def test_eight_python_threads_at_once(monkeypatch):
    """All at their first call, some with lengths: each kernel is made once, and each call has its own numbers."""

    @recollect.cell(gates="f n", states="h")
    def unseen(inp, rec, prev):
        f = torch.sigmoid(inp.f + rec.f)
        return f * prev.h + 0.93127 * (1 - f) * torch.tanh(inp.n + rec.n)

    made, compile_module = [], kernels.compile_module
    monkeypatch.setattr(kernels, "compile_module", lambda *given: made.append(given) or compile_module(*given))
    torch.manual_seed(0)
    layer = nn.Recurrent(unseen, 4, 5, dtype=torch.float64)
    inputs = [torch.randn(3 + row, 1 + row, 4, dtype=torch.float64) for row in range(8)]
    together = Barrier(8, timeout=60)

    def call(x):
        leaf = x.clone().requires_grad_()
        lengths = torch.arange(x.shape[1]) if x.shape[1] % 2 else None
        y, h = layer(leaf, lengths=lengths)
        with torch.no_grad():
            silent, _ = layer(x, lengths=lengths)
        gradients = torch.autograd.grad(y.square().sum() + h.sum(), [leaf, *layer.parameters()])
        return [y.detach(), h.detach(), silent], gradients

    def work(x):
        together.wait()  # the first call compiles: all of them ask at once
        return [call(x) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, inputs, timeout=120))
    assert len(made) == 3, "training, inference and backward"
    for x, calls in zip(inputs, found, strict=True):
        alone = call(x)
        for values, gradients in calls:
            for mine, each in zip([*values, *gradients], [*alone[0], *alone[1]], strict=True):
                assert_bits(mine, each)
        with recollect.set_backend("reference"):
            true_values, true_gradients = call(x)
        for mine, true in zip(alone[0], true_values, strict=True):
            assert_equal(mine, true)
        for mine, true in zip(alone[1], true_gradients, strict=True):
            assert_equal(mine, true, GRADIENT)


@pytest.mark.parametrize("lengths", [None, [(7 * row) % 31 for row in range(29)]], ids=["dense", "lengths"])
def test_eight_python_threads_with_a_team_each(lengths):
    """Work that every call divides among threads of its own; each gets the bits that it would get alone."""
    layer, x = large(cells.lstm, bidirectional=True)
    torch.set_num_threads(2)

    def work(_=None):
        leaf = x.clone().requires_grad_()
        y, _ = layer(leaf, lengths=lengths)
        with torch.no_grad():
            silent, _ = layer(x, lengths=lengths)
        return [y.detach(), silent, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])]

    expected = work()
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(work, range(24), timeout=120):
            for mine, alone in zip(found, expected, strict=True):
                assert_bits(mine, alone)


def _in_child(layer, x, expected, result):
    y = layer(x)[0]
    y.sum().backward()
    gradient = layer.weight_hh_l0.grad
    result.send((torch.equal(y, expected), bool(gradient.isfinite().all()), layer.backend_for(x)))


def test_a_forked_child_runs_alone_and_right():
    layer, x = large(cells.lstm)
    torch.set_num_threads(2)
    with torch.no_grad():
        expected = layer(x)[0]  # the parent's team exists now; the child inherits its memory, not its threads
    torch.set_num_threads(1)  # torch's own products in the child must not look for that team either
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(layer, x, expected, send))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons warn of forks beside threads
        child.start()
    try:
        assert receive.poll(60), "the child hangs"
        same, finite, backend = receive.recv()
        child.join(10)
    finally:
        child.kill()
    assert same
    assert finite
    assert "one thread (OpenMP does not survive a fork)" in backend
