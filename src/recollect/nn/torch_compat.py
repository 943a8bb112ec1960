"""torch.nn's recurrent layers: the same arguments, the same state_dict, the same returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch.nn.utils.rnn import PackedSequence

from recollect import cells
from recollect.cells.cell import Cell
from recollect.errors import InputError
from recollect.nn.recurrent import Options, Recurrent


def rnn_cell(nonlinearity: str) -> Cell:
    """The simple cell with a nonlinearity, ``"tanh"`` or ``"relu"``."""
    choices = {"tanh": cells.rnn_tanh, "relu": cells.rnn_relu}
    if nonlinearity not in choices:
        raise InputError("unknown nonlinearity", given=repr(nonlinearity), expected="'tanh' or 'relu'")
    return choices[nonlinearity]


class _TorchLayer(Recurrent):
    """What the three layers share: torch.nn's argument names and attributes."""

    mode: str

    def forward(
        self,
        input: torch.Tensor | PackedSequence,  # noqa: A002  (torch.nn's own name for it)
        hx: torch.Tensor | tuple[torch.Tensor, ...] | None = None,
        *,
        lengths: torch.Tensor | Sequence[int] | None = None,
        resets: torch.Tensor | PackedSequence | None = None,
        return_states: bool = False,
    ) -> Any:
        """Run the layer; shapes and returns as in ``torch.nn``, the keywords as in `Recurrent`."""
        return super().forward(input, hx, lengths=lengths, resets=resets, return_states=return_states)

    def extra_repr(self) -> str:
        return super().extra_repr().partition(", ")[2]  # the class already names the cell


class RNN(_TorchLayer):
    """The simple recurrent layer; a drop-in for ``torch.nn.RNN``. See `Recurrent` for the arguments.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.
        options: ``recurrent_dropout``, ``zoneout``, ``learned_initial_state``.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
                 bias: bool = True, batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 device: Any = None, dtype: Any = None, **options: Unpack[Options]) -> None:  # fmt: skip
        super().__init__(rnn_cell(nonlinearity), input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, device=device, dtype=dtype, **options)  # fmt: skip
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"


class LSTM(_TorchLayer):
    """Long short-term memory; a drop-in for ``torch.nn.LSTM``. See `Recurrent` for the arguments.

    Args:
        options: ``recurrent_dropout``, ``zoneout``, ``learned_initial_state``.
    """

    mode = "LSTM"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 device: Any = None, dtype: Any = None, **options: Unpack[Options]) -> None:  # fmt: skip
        super().__init__(cells.lstm, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, proj_size=proj_size, device=device, dtype=dtype, **options)  # fmt: skip


class GRU(_TorchLayer):
    """The gated recurrent unit; a drop-in for ``torch.nn.GRU``. See `Recurrent` for the arguments.

    Args:
        options: ``recurrent_dropout``, ``zoneout``, ``learned_initial_state``.
    """

    mode = "GRU"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 device: Any = None, dtype: Any = None, **options: Unpack[Options]) -> None:  # fmt: skip
        super().__init__(cells.gru, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, device=device, dtype=dtype, **options)  # fmt: skip
