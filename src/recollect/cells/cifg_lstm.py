"""Long short-term memory with coupled gates."""

import torch

from recollect.cells.cell import cell


@cell(gates="f g o", states="h c")
def cifg_lstm(inp, rec, prev):
    r"""LSTM with coupled input and forget gates: what is let in replaces what is forgotten.

    .. math::
        f &= \sigma(f_t), \quad g = \tanh(g_t), \quad o = \sigma(o_t) \\
        c_t &= f \, c_{t-1} + (1 - f) \, g \\
        h_t &= o \tanh(c_t)

    where :math:`k_t` is the pre-activation of gate k, as in `lstm`.

    Source: K. Greff et al., "LSTM: a search space odyssey", IEEE TNNLS 28 (2017), variant CIFG
    (without peepholes).
    """
    f = torch.sigmoid(inp.f + rec.f)
    g = torch.tanh(inp.g + rec.g)
    o = torch.sigmoid(inp.o + rec.o)
    c = f * prev.c + (1 - f) * g
    h = o * torch.tanh(c)
    return h, c
