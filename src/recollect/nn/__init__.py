"""Modules: recurrent layers for any cell, and drop-ins for torch.nn's."""

from recollect.nn import init
from recollect.nn.convert import convert
from recollect.nn.recurrent import Recurrent
from recollect.nn.torch_compat import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "convert", "init"]


def __getattr__(name: str) -> object:
    if name in ("RNNCell", "LSTMCell", "GRUCell"):
        layer = name.removesuffix("Cell")
        until_then = f"torch.nn.{name}, or recollect.nn.{layer} with sequences of one step"
        raise AttributeError(f"recollect.nn.{name} is not built yet; until then use {until_then}")
    raise AttributeError(f"module 'recollect.nn' has no attribute {name!r}; public names: {', '.join(__all__)}")
