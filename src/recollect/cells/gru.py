"""The gated recurrent unit."""

import torch

from recollect.cells.cell import cell


@cell(gates="r z n", states="h")
def gru(inp, rec, prev):
    r"""Gated recurrent unit that resets after the product, in PyTorch's equations.

    .. math::
        r &= \sigma(x_t W_{ir} + b_{ir} + h_{t-1} W_{hr} + b_{hr}) \\
        z &= \sigma(x_t W_{iz} + b_{iz} + h_{t-1} W_{hz} + b_{hz}) \\
        n &= \tanh(x_t W_{in} + b_{in} + r \, (h_{t-1} W_{hn} + b_{hn})) \\
        h_t &= (1 - z) \, n + z \, h_{t-1}

    Source: K. Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014, with
    the reset after the product as in cuDNN and ``torch.nn.GRU``.
    """
    r = torch.sigmoid(inp.r + rec.r)
    z = torch.sigmoid(inp.z + rec.z)
    n = torch.tanh(inp.n + r * rec.n)
    return n + z * (prev.h - n)
