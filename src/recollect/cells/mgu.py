"""The minimal gated unit."""

import torch

from recollect.cells.cell import cell


@cell(gates="f n", states="h")
def mgu(inp, rec, prev):
    r"""Minimal gated unit: one gate both resets and updates.

    .. math::
        f &= \sigma(x_t W_{if} + b_{if} + h_{t-1} W_{hf} + b_{hf}) \\
        n &= \tanh(x_t W_{in} + b_{in} + f \, (h_{t-1} W_{hn} + b_{hn})) \\
        h_t &= (1 - f) \, h_{t-1} + f \, n

    Zhou et al. gate the state before the product, :math:`(f \, h_{t-1}) W_{hn}`; here the gate is applied
    after it, as `gru` does, so that a step stays elementwise. The two have the same number of
    parameters but are not the same function.

    Source: G.-B. Zhou et al., "Minimal gated unit for recurrent neural networks", International
    Journal of Automation and Computing 13 (2016).
    """
    f = torch.sigmoid(inp.f + rec.f)
    n = torch.tanh(inp.n + f * rec.n)
    return prev.h + f * (n - prev.h)
