"""A row alone, which has kernels of its own, gives the bits that it gives among others."""

from __future__ import annotations

import pytest
import torch

from recollect import cells, nn
from tolerances import assert_bits

CELLS = [getattr(cells, name) for name in cells.__all__]


@pytest.mark.parametrize("sizes", [(3, 32), (9, 69), (64, 40)], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_outputs_and_states_keep_every_bit(cell, sizes):
    torch.manual_seed(0)
    layer = nn.Recurrent(cell, *sizes)
    x = torch.randn(7, 4, sizes[0])
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y, state = layer(x)
            alone, its_state = layer(x[:, 2:3])
        pairs = zip(*(each if isinstance(each, tuple) else (each,) for each in (its_state, state)), strict=True)
        assert_bits(alone, y[:, 2:3], "outputs")
        for mine, among_others in pairs:
            assert_bits(mine, among_others[:, 2:3], "final states")


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_gradients_keep_every_bit(cell):
    torch.manual_seed(0)
    layer, x = nn.Recurrent(cell, 9, 40), torch.randn(7, 4, 9)
    found = []
    for rows in (slice(2, 3), slice(None)):
        given = x[:, rows].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(given)[0].sum(), given)
        found.append(gradient)
    assert_bits(found[0], found[1][:, 2:3])
