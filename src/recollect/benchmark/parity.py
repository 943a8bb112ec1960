"""Calls to be timed, and whether they compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

import recollect

# Largest difference, relative to the largest value, that counts as the same result in float32.
PARITY = 2e-4

# Runs a layer; returns the outputs that a gradient is sent back from.
Run = Callable[[], Sequence[torch.Tensor]]


def infer(run: Run) -> Callable[[], object]:
    """One inference call."""

    def call() -> None:
        with torch.inference_mode():
            run()

    return call


def train(run: Run, leaves: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> Callable[[], object]:
    """One forward and backward pass; the gradients of all ``leaves``."""

    def call() -> None:
        torch.autograd.backward(run(), grads)
        for leaf in leaves:
            leaf.grad = None

    return call


def results(run: Run, leaves: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The outputs, then the gradients of ``leaves``."""
    outputs = run()
    return [*(each.detach() for each in outputs), *torch.autograd.grad(outputs, leaves, grads)]


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference, each tensor's relative to its largest value; NaN if either has one."""
    each = [(a - b).abs().max() / b.abs().max().clamp_min(1e-30) for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(each).max())  # torch's max keeps a NaN, Python's may lose it


def norm_difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference by norms, ``‖Δ‖₂`` of each tensor relative to its own; NaN if either has one."""
    return float(torch.stack([(a - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)]).max())


def difference_from_reference(run: Run, leaves: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> float:
    """Between kernels and reference, for what no peer computes; random masks are drawn alike."""
    found = []
    for backend in ("llvm", "reference"):
        torch.manual_seed(1)
        with recollect.set_backend(backend):
            found.append(results(run, leaves, grads))
    return difference(*found)
