"""The subjects: our layers, torch.nn's, and the loop one writes by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import recollect
from recollect import cells

SHAPES = [(1, 16, 32), (16, 16, 64), (32, 32, 128), (64, 64, 256), (128, 128, 512)]  # (B, I, H)
STEPS = 100
# Largest difference, relative to the largest value, that counts as the same result in float32.
PARITY = 2e-4


class EagerLSTM(nn.Module):
    """The LSTM as a loop in eager PyTorch; the input's product is taken for all steps at once."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.inner = nn.LSTM(input_size, hidden_size)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        inner = self.inner
        h = x.new_zeros(x.shape[1], inner.hidden_size)
        c = torch.zeros_like(h)
        outputs = []
        for inputs in nn.functional.linear(x, inner.weight_ih_l0, inner.bias_ih_l0 + inner.bias_hh_l0):
            i, f, g, o = torch.addmm(inputs, h, inner.weight_hh_l0.t()).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h.unsqueeze(0), c.unsqueeze(0))


def _lstm_against_loop(i: int, h: int) -> tuple[nn.Module, nn.Module]:
    loop = EagerLSTM(i, h)
    ours = recollect.nn.LSTM(i, h)
    ours.load_state_dict(loop.inner.state_dict())
    return ours, loop


def _like_torch(ours: type[nn.Module], peer: type[nn.Module]) -> Callable[[int, int], tuple[nn.Module, nn.Module]]:
    def make(i: int, h: int) -> tuple[nn.Module, nn.Module]:
        a, b = ours(i, h), peer(i, h)
        a.load_state_dict(b.state_dict())
        return a, b

    return make


# Name -> a maker of (ours, peer) with equal weights.
SUBJECTS = {
    "LSTM vs torch.nn": _like_torch(recollect.nn.LSTM, nn.LSTM),
    "GRU vs torch.nn": _like_torch(recollect.nn.GRU, nn.GRU),
    "tanh RNN vs torch.nn": _like_torch(recollect.nn.RNN, nn.RNN),
    "LSTM vs eager loop": _lstm_against_loop,
}
# Another cell of ours in place of the peer: the ratio is its time over our LSTM's.
PEEPHOLE = "peephole vs our LSTM"


def peephole(i: int, h: int) -> tuple[nn.Module, nn.Module]:
    """Our LSTM, and the same with peepholes in the place of the peer."""
    return recollect.nn.LSTM(i, h), recollect.nn.Recurrent(cells.peephole_lstm, i, h)


def infer(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """One inference call."""

    def call() -> None:
        with torch.inference_mode():
            module(x)

    return call


def train(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], object]:
    """One forward and backward pass, with the gradient of the input."""
    parameters = list(module.parameters())

    def call() -> None:
        y, _ = module(x)
        y.backward(grad)
        x.grad = None
        for parameter in parameters:
            parameter.grad = None

    return call


def parity(ours: nn.Module, peer: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> float:
    """The largest relative difference of outputs and of all gradients."""
    return _difference(_results(ours, x, grad), _results(peer, x, grad))


def parity_with_reference(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> float:
    """The same between the kernels and the reference, for a cell that no peer has."""
    found = []
    for backend in ("llvm", "reference"):
        with recollect.set_backend(backend):
            found.append(_results(module, x, grad))
    return _difference(*found)


def _results(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    y, _ = module(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], grad)]


def _difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(found, expected, strict=True)
    )
