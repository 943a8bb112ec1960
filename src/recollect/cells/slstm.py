"""The scalar cell of xLSTM."""

import torch
import torch.nn.functional as F

from recollect.cells.cell import cell


@cell(gates="i f g o", states="h c n m")
def slstm(inp, rec, prev):
    r"""xLSTM's scalar cell: exponential gates, a normaliser state n and a stabiliser state m.

    With :math:`k_t` the pre-activation of gate k:

    .. math::
        m_t &= \max(\ln \sigma(f_t) + m_{t-1},\; i_t) \\
        i &= e^{i_t - m_t}, \quad f = e^{\ln \sigma(f_t) + m_{t-1} - m_t}, \quad g = \tanh(g_t),
             \quad o = \sigma(o_t) \\
        c_t &= f \, c_{t-1} + i \, g, \quad n_t = f \, n_{t-1} + i \\
        h_t &= o \, c_t / n_t

    One dense head: W_hh is a full matrix. The forget gate is the sigmoid of the paper's two choices.
    m keeps the exponentials in range and cancels in h. Where :math:`n_{t-1} = 0`, as at the start,
    :math:`m_t = i_t`, as in the authors' code: else a small first i would round to 0, and with it c and n.

    Source: M. Beck et al., "xLSTM: extended long short-term memory", arXiv:2405.04517, equations 8-17.
    """
    log_f = F.logsigmoid(inp.f + rec.f)
    preact_i = inp.i + rec.i
    m = torch.where(prev.n == 0, preact_i, torch.maximum(log_f + prev.m, preact_i))
    i = torch.exp(preact_i - m)
    # At most 0, except where n is 0: there f must stay finite, since c is 0 too.
    f = torch.exp(torch.clamp(log_f + prev.m - m, max=80.0))
    g = torch.tanh(inp.g + rec.g)
    o = torch.sigmoid(inp.o + rec.o)
    c = f * prev.c + i * g
    n = f * prev.n + i
    h = o * c / n
    return h, c, n, m
