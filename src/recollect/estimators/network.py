"""The network inside a Forecaster."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from recollect.nn import Recurrent


class ForecastNetwork(nn.Module):
    """A recurrent layer that reads the context, and a linear head that says the whole horizon at once.

    Forecasting all steps from the last output (the direct strategy) feeds no forecast back in, so errors
    do not pile up along the horizon.

    Args:
        recurrent: takes [B, T, 1] (``batch_first=True``).
        head: from ``recurrent.hidden_size`` to the horizon.
    """

    def __init__(self, recurrent: Recurrent, head: nn.Linear) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Forecast [B, horizon] from scaled contexts ``x`` [B, T, 1]."""
        outputs, _ = self.recurrent(x)
        return self.head(outputs[:, -1])

    def layers(self) -> nn.Sequential:
        """The two layers as a ``Sequential`` of the same names, which a model file can hold."""
        return nn.Sequential(OrderedDict(recurrent=self.recurrent, head=self.head))
