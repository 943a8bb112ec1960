"""Cells as loops in eager PyTorch, as one writes them by hand.

The input's product is taken for all steps at once, and the recurrent product is added in the same operation
where the equations allow it: this is the peer at its best, not our reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import linear

from recollect.nn import Recurrent

States = Sequence[torch.Tensor]
# (layer, x W_ih + b of one step [B, G * H], states before it) -> states after it, the output first. The layer is a
# `Recurrent`, whose parameters are named by its cell, so that no type can know them.
Step = Callable[[Any, torch.Tensor, States], States]


class Loop(nn.Module):
    """A layer's parameters run by a step in a Python loop; returns (y, states) as the layer does."""

    def __init__(self, layer: Recurrent, step: Step) -> None:
        super().__init__()
        self.layer, self.step = layer, step

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, States]:
        layer: Any = self.layer
        zeros = x.new_zeros(x.shape[1], layer.hidden_size)
        states: States = [zeros] * len(layer.cell.states)
        # Where b_hh is gated it cannot be added before the loop.
        bias = layer.bias_ih_l0 if self.step is mgu else layer.bias_ih_l0 + layer.bias_hh_l0
        outputs = []
        for inputs in linear(x, layer.weight_ih_l0, bias).unbind():
            states = self.step(layer, inputs, states)
            outputs.append(states[0])
        return torch.stack(outputs), [state.unsqueeze(0) for state in states]


def _preacts(layer: Any, inputs: torch.Tensor, h: torch.Tensor, gates: int) -> States:
    return torch.addmm(inputs, h, layer.weight_hh_l0.t()).chunk(gates, 1)


def lstm(layer: Any, inputs: torch.Tensor, states: States) -> States:
    """One step of the LSTM."""
    h, c = states
    i, f, g, o = _preacts(layer, inputs, h, 4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def peephole_lstm(layer: Any, inputs: torch.Tensor, states: States) -> States:
    """One step of the LSTM with peepholes."""
    h, c = states
    i, f, g, o = _preacts(layer, inputs, h, 4)
    i = torch.sigmoid(torch.addcmul(i, layer.vector_p_i_l0, c))
    f = torch.sigmoid(torch.addcmul(f, layer.vector_p_f_l0, c))
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(torch.addcmul(o, layer.vector_p_o_l0, c)) * torch.tanh(c), c


def cifg_lstm(layer: Any, inputs: torch.Tensor, states: States) -> States:
    """One step of the LSTM with coupled gates."""
    h, c = states
    f, g, o = _preacts(layer, inputs, h, 3)
    c = torch.lerp(torch.tanh(g), c, torch.sigmoid(f))
    return torch.sigmoid(o) * torch.tanh(c), c


def mgu(layer: Any, inputs: torch.Tensor, states: States) -> States:
    """One step of the minimal gated unit."""
    (h,) = states
    inp_f, inp_n = inputs.chunk(2, 1)
    rec_f, rec_n = torch.addmm(layer.bias_hh_l0, h, layer.weight_hh_l0.t()).chunk(2, 1)
    f = torch.sigmoid(inp_f + rec_f)
    return (torch.lerp(h, torch.tanh(torch.addcmul(inp_n, f, rec_n)), f),)


def slstm(layer: Any, inputs: torch.Tensor, states: States) -> States:
    """One step of xLSTM's scalar cell."""
    h, c, n, m = states
    i, f, g, o = _preacts(layer, inputs, h, 4)
    kept = F.logsigmoid(f) + m
    m = torch.maximum(kept, i)
    i, f = torch.exp(i - m), torch.exp(kept - m)
    c, n = f * c + i * torch.tanh(g), f * n + i
    return torch.sigmoid(o) * c / n, c, n, m


STEPS: dict[str, Step] = {step.__name__: step for step in (lstm, peephole_lstm, cifg_lstm, mgu, slstm)}
