"""What rows do not cover is refused with what to write instead."""

from __future__ import annotations

import pytest
import torch

import recollect
from recollect.errors import CellError

REFUSED = {
    "remainder of two values": (torch.remainder, "'remainder'", "the divisor of fmod and remainder must be a number"),
    "fmod of two values": (torch.fmod, "'fmod'", "the divisor of fmod and remainder must be a number"),
    "remainder of a number": (lambda x, y: 2.0 % (x + y), "the divisor of fmod and remainder must be a number"),
    "division by NaN": (lambda x, y: (x + y) % float("nan"), "a constant is not a number"),
    "bits": (lambda x, y: (torch.where(x > 0, 3, 1) & (y > 0)) * x, "'bitwise_and'", "as in (a > 0) & (b < 1)"),
    "the largest number": (lambda x, y: torch.nan_to_num(x + y), "give posinf= and neginf="),
    "no derivative": (torch.heaviside, "torch.where(x > 0, 1.0, 0.0) has"),
    "whole numbers": (lambda x, y: (x > 0).long() * y, "a cast to another kind of number"),
    "double": (lambda x, y: x.double() * y, "a cast to another precision", "the layer's dtype"),
    "half": (lambda x, y: x.to(torch.float16) * y, "a cast to another precision"),
    "shape": (lambda x, y: x.view(-1) + y.view(-1), "'view'", "write it with the operations listed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    function, *said = REFUSED[name]

    def step(inp, rec, prev):
        return function(inp.a, rec.a)  # quoted

    with pytest.raises(CellError, match=r"in line .*# quoted") as caught:
        recollect.cell(gates="a", states="h")(step)
    for text in said:
        assert text in str(caught.value)
    assert ("\n  arithmetic: abs" in str(caught.value)) == ("listed" in said[-1])
