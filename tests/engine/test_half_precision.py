"""Half precision on the CPU: the numbers of a float32 layer, rounded, and no product of torch's, which takes long."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import recollect
from recollect import cells, nn
from tolerances import VALUE, assert_bits, assert_equal

UNWARNED = pytest.mark.filterwarnings("ignore:recollect runs on the reference")
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
LENGTHS = (2, 6, 0, 5)
OPTIONS = {
    "plain": {},
    "both ways, vectors": {"cell": cells.peephole_lstm, "bidirectional": True},
    "projected": {"proj_size": 2},
    "projected, another cell": {"cell": cells.cifg_lstm, "proj_size": 2},
    "zoneout": {"zoneout": 0.25},
    "segments": {"checkpoint": 2},
}


def pair(dtype, cell=cells.lstm, **options):
    """A layer, and one in float32 with the same numbers."""
    layer = nn.Recurrent(cell, 3, 5, dtype=dtype, **options).eval()
    wide = nn.Recurrent(cell, 3, 5, **options).eval()
    wide.load_state_dict(layer.state_dict())
    return layer, wide


def results(layer, x, upstream):
    """Output, final states and the gradients of x and all parameters."""
    x = x.clone().requires_grad_()
    y, state = layer(x, lengths=LENGTHS)
    wanted = [x, *layer.parameters()]
    return [y, *(state if isinstance(state, tuple) else (state,)), *torch.autograd.grad(y, wanted, upstream)]


@HALF
@UNWARNED
@pytest.mark.parametrize("name", OPTIONS)
def test_the_numbers_are_those_of_float32_rounded(name, dtype):
    torch.manual_seed(0)
    layer, wide = pair(dtype, **OPTIONS[name])
    x = torch.randn(6, 4, 3).to(dtype)
    upstream = torch.randn(layer(x)[0].shape).to(dtype)
    for rounded, exact in zip(results(layer, x, upstream), results(wide, x.float(), upstream.float()), strict=True):
        assert rounded.dtype == dtype
        assert_bits(rounded, exact.to(dtype))


@HALF
def test_resets_and_states_are_rounded_once(dtype):
    torch.manual_seed(1)
    layer, wide = pair(dtype, cells.lstm)
    x, resets = torch.randn(6, 4, 3).to(dtype), torch.rand(6, 4) < 0.3
    state = tuple(torch.randn(1, 4, 5).to(dtype) for _ in "hc")
    y, final, states = layer(x, state, resets=resets, return_states=True)
    expected = wide(x.float(), tuple(part.float() for part in state), resets=resets, return_states=True)
    for rounded, exact in zip((y, *final, *states), (expected[0], *expected[1], *expected[2]), strict=True):
        assert_bits(rounded, exact.to(dtype))


class Products(TorchDispatchMode):
    """The types of what matrix products multiply."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.dtypes += [value.dtype for value in arguments if isinstance(value, torch.Tensor)]
        return function(*arguments, **(keywords or {}))


@HALF
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@UNWARNED
def test_nothing_multiplies_in_half_precision(make, dtype):
    """Forward, backward and twice backward; so it is inside of torch.func."""
    layer = make(3, 5, dtype=dtype)
    x = torch.randn((4, 3) if make.__name__.endswith("Cell") else (2, 4, 3)).to(dtype)

    def total(value):
        found = layer(value)
        return (found if isinstance(found, torch.Tensor) else found[0]).square().sum()

    with Products() as products:
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(total(leaf), leaf, create_graph=True)
        first.square().sum().backward()
        torch.func.grad(total)(x)
    assert set(products.dtypes) == {torch.float32}


@HALF
def test_the_backend_says_so(dtype):
    x = torch.zeros(4, 1, 3, dtype=dtype)
    how = f"computed in float32 and rounded to {dtype}"
    for backend in ("auto", "llvm"):
        with recollect.set_backend(backend):
            for layer in (nn.LSTM(3, 5, dtype=dtype), nn.Recurrent(cells.mgu, 3, 5, dtype=dtype)):
                assert layer.backend_for(x).startswith("llvm: ")
                assert layer.backend_for(x).endswith(how)
    projected = nn.LSTM(3, 5, proj_size=2, dtype=dtype).backend_for(x)
    assert projected.startswith("torch: ")
    assert projected.endswith(how)


@HALF
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_what_is_forced_computes_in_half_precision(backend, dtype):
    torch.manual_seed(2)
    layer, wide = pair(dtype)
    x = torch.randn(6, 4, 3).to(dtype)
    with recollect.set_backend(backend):
        assert "float32" not in layer.backend_for(x)
        assert_equal(layer(x)[0], wide(x.float())[0], VALUE)
