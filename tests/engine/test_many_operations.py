"""Cells of users that need more of the table than the published ones do, from declaration to gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_parity import CASES, DTYPES, compare

import recollect


@recollect.cell(gates="i f g", states="h c m", vectors="tau")
def mixed(inp, rec, prev, vec):
    """Gates by the exact GELU and by a running soft maximum, and a memory that is kept between two bounds."""
    i = torch.erf(F.gelu(inp.i + rec.i))
    m = torch.logaddexp(prev.m + F.logsigmoid(inp.f + rec.f), i)
    g = F.mish(inp.g + rec.g)
    keep = ((g > 0) & (i < 0.5)) | ~(prev.c.abs() < 2.0)
    c = torch.lerp(prev.c, torch.where(keep, g, F.elu(prev.c)), torch.exp(-torch.log1p(vec.tau.square())))
    c = c.masked_fill(c.isnan() | c.isinf(), 0.0).clamp(prev.c - 1.0, prev.c + 1.0)
    return torch.atan(c) * torch.rsqrt(1.0 + i * i) + torch.expm1(-m * m), c, m


@recollect.cell(gates="a b", states="h phase")
def clockwork(inp, rec, prev):
    """A unit writes when its phase has come round, and is thresholded softly; few gradients, all of them by choices."""
    due = torch.remainder(prev.phase, 3.0) < 1.0
    new = F.softshrink(torch.sinh(0.3 * (inp.a + rec.a)), 0.05) + F.hardswish(inp.b * rec.b)
    h = torch.where(due ^ (new < -2.0), new, torch.fmax(prev.h, -new))
    return torch.addcmul(h, prev.h, F.selu(new), value=0.5), prev.phase + torch.floor(h).clamp(0.0, 2.0) + 1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["two layers, both ways", "lengths", "odd and wide"])
@pytest.mark.parametrize("cell", [mixed, clockwork], ids=lambda cell: cell.name)
def test_llvm_equals_the_reference(cell, case, dtype):
    compare(cell, CASES[case], dtype, [("y",), ("y", *cell.states)])
