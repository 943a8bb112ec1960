"""Models made to have one fault each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from recollect import nn as ours
from recollect.training.batches import Group, Reader
from recollect.training.culprit import find_culprit
from recollect.training.place import Place

B, T, STEP, ROW = 4, 9, 5, 2


LAYERS = {
    f"{home.__name__.split('.')[0]} {name}": getattr(home, name)
    for home in (nn, ours)
    for name in ("RNN", "LSTM", "GRU")
}


layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def mean(output, y):
    return output.mean()


def count_hooks(module):
    return len(module._forward_hooks), len(module._forward_pre_hooks)


def found(model, x, y=None, loss=mean):
    y = torch.zeros(B) if y is None else y
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [count_hooks(module) for module in model.modules()]
    culprit = find_culprit(model, Group(Reader(model)([(x, y)])), loss)
    assert all(torch.equal(tensor, state[name]) or tensor.isnan().any() for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [count_hooks(module) for module in model.modules()] == hooks
    assert culprit.remedy
    return culprit


def place(step, row=None):
    return Place(step, row)


class Net(nn.Module):
    """A recurrent layer and a head that sees every step."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), 1)

    def between(self, h):
        return h

    def forward(self, x):
        h = self.rnn(x)[0]
        return self.head(self.between(h.data if isinstance(h, PackedSequence) else h))


HUGE = 1e30


def faulty(make, *, batch_first=True, reverse_only=False, first_layer=0, **arguments):
    """A layer that goes bad, and stays so, at the step and row where its input is huge.

    Of themselves these layers saturate, ours even where sums overflow: only ReLU gets to infinity.
    """
    rnn = make(2, 3, batch_first=batch_first, **arguments)

    def spoil(module, args, output):
        y, state = output
        x = args[0]
        packed = isinstance(x, PackedSequence)
        if packed:
            (x, lengths), (y, _) = (pad_packed_sequence(each, module.batch_first) for each in (x, y))
        time = 1 if batch_first and x.ndim == 3 else 0
        huge = (x.abs() > HUGE).any(-1, keepdim=True)
        directions = [huge.cumsum(time), huge.flip(time).cumsum(time).flip(time)]
        bad = torch.cat([each.expand(*each.shape[:-1], 3) for each in directions[: y.shape[-1] // 3]], -1) > 0
        if reverse_only:
            bad[..., :3] = False
        y = y.masked_fill(bad, math.nan)
        spoilt = [each.clone() for each in (state if isinstance(state, tuple) else (state,))]
        if huge.any():
            for each in spoilt:
                each[first_layer:] = math.nan
        if packed:
            y = pack_padded_sequence(y, lengths, module.batch_first, enforce_sorted=False)
        return y, tuple(spoilt) if isinstance(state, tuple) else spoilt[0]

    rnn.register_forward_hook(spoil)
    x = torch.randn(B, T, 2)
    x[ROW, STEP] = 3e38
    return rnn, x if batch_first else x.transpose(0, 1)


class Exploding(nn.Module):
    """Makes one entry infinite."""

    at = (ROW, STEP)

    def forward(self, h):
        scale = torch.ones_like(h)
        scale[self.at] = math.inf
        return h + scale


class Loop(nn.Module):
    """A cell that is called once for each step."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state, outputs = None, []
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, 1)


cell_layers = pytest.mark.parametrize(
    "make", [nn.RNNCell, nn.LSTMCell, nn.GRUCell, ours.RNNCell, ours.LSTMCell, ours.GRUCell]
)
