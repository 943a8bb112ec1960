"""Long short-term memory whose gates see the state."""

import torch

from recollect.cells.cell import cell


@cell(gates="i f g o", states="h c", vectors="p_i p_f p_o")
def peephole_lstm(inp, rec, prev, vec):
    r"""LSTM with peephole connections: the gates also see the long-term state, unit by unit.

    .. math::
        i &= \sigma(i_t + p_i \, c_{t-1}), \quad f = \sigma(f_t + p_f \, c_{t-1}), \quad g = \tanh(g_t) \\
        c_t &= f \, c_{t-1} + i \, g \\
        o &= \sigma(o_t + p_o \, c_t), \quad h_t = o \tanh(c_t)

    where :math:`k_t` is the pre-activation of gate k, as in `lstm`.

    Source: F. A. Gers, J. Schmidhuber, "Recurrent nets that time and count", IJCNN 2000.
    """
    i = torch.sigmoid(inp.i + rec.i + vec.p_i * prev.c)
    f = torch.sigmoid(inp.f + rec.f + vec.p_f * prev.c)
    g = torch.tanh(inp.g + rec.g)
    c = f * prev.c + i * g
    o = torch.sigmoid(inp.o + rec.o + vec.p_o * c)
    h = o * torch.tanh(c)
    return h, c
