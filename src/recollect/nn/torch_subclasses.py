"""Our layers once more, as true subclasses of torch.nn's, for code that asks ``isinstance(layer, torch.nn.LSTM)``.

``recollect.convert(model, subclass=True)`` puts them into a model. torch.compile refuses all instances of torch.nn's
three layers: it breaks its graph at them, and raises with ``fullgraph=True``. So they are not the ones that
`recollect.nn` has by default. To import this module is to import the compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recollect.nn import torch_compat

# Where the compiler has left the graph it would follow the call again further down, and unroll it.
_forward: Any = torch.compiler.disable(torch_compat.TorchLayer.forward)


class RNN(torch_compat.RNN, nn.RNN):
    """`recollect.nn.RNN` that is a ``torch.nn.RNN``; the arguments are the same."""

    forward = _forward


class LSTM(torch_compat.LSTM, nn.LSTM):
    """`recollect.nn.LSTM` that is a ``torch.nn.LSTM``; the arguments are the same."""

    forward = _forward


class GRU(torch_compat.GRU, nn.GRU):
    """`recollect.nn.GRU` that is a ``torch.nn.GRU``; the arguments are the same."""

    forward = _forward
