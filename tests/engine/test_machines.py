"""Kernels for other machines of this family: narrower vectors, fewer registers, no fused multiply-add."""

import platform

import pytest
import torch

import recollect
from recollect import cells
from recollect.engine.llvm import kernels
from recollect.engine.llvm.machine import Machine
from tolerances import GRADIENT, assert_equal

MACHINES = {"AVX2": Machine("haswell", "", 32, 12), "SSE2": Machine("x86-64", "", 16, 12)}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the machines are of the x86-64 family")
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("cell", ["gru", "peephole_lstm"])
def test_kernels_for_a_lesser_machine(name, cell, monkeypatch):
    monkeypatch.setattr(kernels, "host", lambda: MACHINES[name])
    monkeypatch.setattr(kernels, "_CACHE", {})
    layer = recollect.nn.Recurrent(cells.by_name(cell), 5, 19)
    x = torch.randn(6, 7, 5, requires_grad=True)
    found = []
    for backend in ("llvm", "reference"):
        with recollect.set_backend(backend):
            y, _ = layer(x, lengths=[6, 0, 3, 4, 1, 6, 2])
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    for ours, true in zip(*found, strict=True):
        assert_equal(ours, true, GRADIENT)
