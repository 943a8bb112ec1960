"""Modules: recurrent layers for any cell, and drop-ins for torch.nn's."""

from recollect.nn import init
from recollect.nn.convert import convert
from recollect.nn.recurrent import Recurrent
from recollect.nn.torch_cells import GRUCell, LSTMCell, RNNCell
from recollect.nn.torch_compat import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Recurrent", "convert", "init"]
