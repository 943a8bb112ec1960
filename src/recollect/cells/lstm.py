"""Long short-term memory."""

import torch

from recollect.cells.cell import cell


@cell(gates="i f g o", states="h c")
def lstm(inp, rec, prev):
    r"""Long short-term memory with a forget gate, in PyTorch's equations.

    With :math:`k_t = x_t W_{ik} + b_{ik} + h_{t-1} W_{hk} + b_{hk}` for each gate k:

    .. math::
        i &= \sigma(i_t), \quad f = \sigma(f_t), \quad o = \sigma(o_t), \quad g = \tanh(g_t) \\
        c_t &= f \, c_{t-1} + i \, g \\
        h_t &= o \tanh(c_t)

    The gates see the input and the last output only, never the state c.

    Source: S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9 (1997), with
    the forget gate of F. A. Gers, J. Schmidhuber, F. Cummins (2000); as in ``torch.nn.LSTM``.
    """
    i = torch.sigmoid(inp.i + rec.i)
    f = torch.sigmoid(inp.f + rec.f)
    g = torch.tanh(inp.g + rec.g)
    o = torch.sigmoid(inp.o + rec.o)
    c = f * prev.c + i * g
    h = o * torch.tanh(c)
    return h, c
