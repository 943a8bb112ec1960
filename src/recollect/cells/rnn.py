"""The simple recurrent cells."""

import torch

from recollect.cells.cell import cell


@cell(gates="a", states="h")
def rnn_tanh(inp, rec, prev):
    r"""The simple recurrent cell (Elman 1990).

    .. math:: h_t = \tanh(x_t W_{ih} + b_{ih} + h_{t-1} W_{hh} + b_{hh})

    Source: J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990); as in
    ``torch.nn.RNN(nonlinearity="tanh")``.
    """
    return torch.tanh(inp.a + rec.a)


@cell(gates="a", states="h")
def rnn_relu(inp, rec, prev):
    r"""The simple recurrent cell with a rectifier (Le, Jaitly & Hinton 2015 start W_hh at the identity).

    .. math:: h_t = \max(0,\; x_t W_{ih} + b_{ih} + h_{t-1} W_{hh} + b_{hh})

    Source: Q. V. Le, N. Jaitly, G. E. Hinton, "A simple way to initialize recurrent networks of
    rectified linear units", arXiv:1504.00941; as in ``torch.nn.RNN(nonlinearity="relu")``.
    """
    return torch.relu(inp.a + rec.a)
