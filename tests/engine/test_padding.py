"""Padding of results is 0, also where there is so much of it that the zeros go past the caches."""

from __future__ import annotations

import pytest
import torch

from recollect import nn
from tolerances import GRADIENT, assert_bits, assert_equal


@pytest.mark.parametrize("steps", [9, 600])
@pytest.mark.parametrize("size", [64, 61])  # rows of whole vectors, and others, which never go past the caches
@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_is_zero_and_all_else_as_without(steps, size, batch_first):
    torch.manual_seed(0)
    layer, x = nn.LSTM(size, size, batch_first=batch_first), torch.randn(steps, 64, size)
    lengths = torch.randint(0, steps // 2, (64,))
    valid = (torch.arange(steps).unsqueeze(1) < lengths).unsqueeze(2)
    if batch_first:
        x, valid = x.transpose(0, 1).contiguous(), valid.transpose(0, 1)
    found = []
    for options in ({"lengths": lengths}, {}):
        given = x.clone().requires_grad_()
        y = layer(given, **options)[0]
        if not options:
            y = torch.where(valid, y, 0.0)
        found.append((y.detach(), *torch.autograd.grad(y.square().sum(), given)))
    (y, dx), (true_y, true_dx) = found
    assert_bits(y, true_y)
    assert not dx[~valid.squeeze(2)].any()
    assert_equal(dx, true_dx, GRADIENT)
