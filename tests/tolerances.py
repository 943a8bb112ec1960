"""How close is equal: one table by dtype.

An error is measured against ``max(1, largest |expected|)``, so that a value near 0 in a large tensor is not
held to digits that no product of this size has.
"""

from __future__ import annotations

import torch

# Of a kernel against the float64 reference: values, and gradients (which sum over rows and steps).
VALUE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}
GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}
# Of one elementary function against torch's own.
FUNCTION = {torch.float64: 1e-13, torch.float32: 3e-7}


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected value where that is above 1; NaN where NaN is met."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} is not {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    scale = max(1.0, expected.abs().max().item())
    return (actual.double() - expected.double()).abs().max().item() / scale


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, table=VALUE, what: str = "") -> None:
    """Equal to the tolerance of ``actual``'s dtype; nothing may be NaN."""
    found, allowed = error(actual, expected), table[actual.dtype]
    assert found <= allowed, f"{what or 'tensors'} differ by {found:.2e}; allowed are {allowed:.0e}"


def assert_bits(actual: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    """Equal in every bit."""
    assert torch.equal(actual, expected), f"{what or 'tensors'} differ in some bit"
