"""torch.nn's recurrent layers: the same arguments, the same state_dict, the same returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from recollect import cells
from recollect.cells.cell import Cell
from recollect.errors import InputError, OptionError
from recollect.nn.recurrent import Options, Recurrent


def rnn_cell(nonlinearity: str) -> Cell:
    """The simple cell with a nonlinearity, ``"tanh"`` or ``"relu"``."""
    choices = {"tanh": cells.rnn_tanh, "relu": cells.rnn_relu}
    if nonlinearity not in choices:
        raise InputError("unknown nonlinearity", given=repr(nonlinearity), expected="'tanh' or 'relu'")
    return choices[nonlinearity]


# Methods are taken over from these by name, whatever else a type checker knows about their classes.
_Module: Any = nn.Module
_TheirLSTM: Any = nn.LSTM


def known_options(kind: str, options: Options) -> Options:
    """Return the keyword arguments that torch.nn's layer of this name does not have, or raise if we do not either.

    Raises:
        InputError: proj_size, which torch.nn has for the LSTM alone.
        OptionError: any other that no layer of ours takes.
    """
    for name, value in options.items():
        if name == "proj_size":
            raise InputError(
                "proj_size argument is only supported for LSTM, not RNN or GRU",  # in torch.nn's own words
                given=f"proj_size={value} for {kind}",
                remedy="follow the layer with torch.nn.Linear",
            )
        if name not in Options.__annotations__:
            raise OptionError(
                f"{kind} has no argument {name!r}",
                given=f"{name}={value!r}",
                expected=f"torch.nn.{kind}'s arguments, or {', '.join(Options.__annotations__)}",
            )
    return options


class _WeightList(list[torch.Tensor]):
    """The weights of a layer; an assignment to one of the places would reach nothing, so it is refused."""

    def __setitem__(self, place: Any, value: Any) -> None:
        raise _weights_are_attributes(f"_flat_weights[{place}] = ...")


def _weights_are_attributes(given: str) -> InputError:
    return InputError(
        "a layer computes with its attributes, and _flat_weights only lists these",
        given=given,
        expected="the tensors that it lists, in their order",
        remedy="set the attribute, such as weight_hh_l0; for a plain tensor, delete the parameter of that name first",
    )


class TorchLayer(Recurrent, nn.RNNBase):
    """What the three layers share: torch.nn's argument names, attributes, and its members beside the call.

    They derive from torch.nn.RNNBase, but not from torch.nn.LSTM and its like, as torch.compile makes no graph of
    these; `recollect.nn.torch_subclasses` has layers that do.
    """

    mode: str

    # torch.nn.RNNBase keeps the weights in a second list, which has to follow every change of the first one. Ours are
    # read by name, so what keeps that list is a plain module's again.
    __setattr__ = _Module.__setattr__
    __getstate__ = _Module.__getstate__
    __setstate__ = _Module.__setstate__
    _apply = _Module._apply
    _replicate_for_data_parallel = _Module._replicate_for_data_parallel

    def _init_flat_weights(self) -> None:
        """Do nothing, as there is no second list."""

    def _update_flat_weights(self) -> None:
        """Do nothing, as there is no second list."""

    def _weights_have_changed(self) -> bool:
        return False

    @property
    def _flat_weights(self) -> list[torch.Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _WeightList(self._parameters_in_order())

    @_flat_weights.setter
    def _flat_weights(self, weights: Sequence[torch.Tensor]) -> None:
        current = self._parameters_in_order()
        if len(weights) != len(current) or any(new is not old for new, old in zip(weights, current, strict=True)):
            raise _weights_are_attributes(f"_flat_weights = {len(weights)} tensors, of which some are others")

    @property
    def _all_weights(self) -> list[list[str]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        names, runs = self._flat_weights_names, self.num_layers * self._directions
        count = len(names) // runs
        return [names[run * count : (run + 1) * count] for run in range(runs)]

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


class RNN(TorchLayer):
    """The simple recurrent layer; a drop-in for ``torch.nn.RNN``. See `Recurrent` for the arguments.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.
        options: ``recurrent_dropout``, ``zoneout``, ``learned_initial_state``.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
                 bias: bool = True, batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 device: Any = None, dtype: Any = None, **options: Unpack[Options]) -> None:  # fmt: skip
        super().__init__(rnn_cell(nonlinearity), input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, device=device, dtype=dtype, **known_options("RNN", options))  # fmt: skip
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"


class LSTM(TorchLayer):
    """Long short-term memory; a drop-in for ``torch.nn.LSTM``. See `Recurrent` for the arguments.

    Args:
        options: ``recurrent_dropout``, ``zoneout``, ``learned_initial_state``.
    """

    mode = "LSTM"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 device: Any = None, dtype: Any = None, **options: Unpack[Options]) -> None:  # fmt: skip
        super().__init__(cells.lstm, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, proj_size=proj_size, device=device, dtype=dtype,
                         **known_options("LSTM", options))  # fmt: skip

    def get_expected_cell_size(self, input: torch.Tensor, batch_sizes: torch.Tensor | None) -> tuple[int, int, int]:  # noqa: A002
        """The shape of c that goes with an input, or with the rows of a PackedSequence, as torch.nn.LSTM says it."""
        return _TheirLSTM.get_expected_cell_size(self, input, batch_sizes)

    def check_forward_args(self, input: Any, hidden: Any, batch_sizes: Any) -> None:  # noqa: A002
        """Raise torch.nn.LSTM's own errors unless an input [T, B, I] and states (h, c) fit the layer."""
        _TheirLSTM.check_forward_args(self, input, hidden, batch_sizes)

    def permute_hidden(self, hx: Any, permutation: torch.Tensor | None) -> Any:
        """The states (h, c) with their batch in another order, as torch.nn.LSTM returns them."""
        return _TheirLSTM.permute_hidden(self, hx, permutation)


class GRU(TorchLayer):
    """The gated recurrent unit; a drop-in for ``torch.nn.GRU``. See `Recurrent` for the arguments.

    Args:
        options: ``recurrent_dropout``, ``zoneout``, ``learned_initial_state``.
    """

    mode = "GRU"

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 device: Any = None, dtype: Any = None, **options: Unpack[Options]) -> None:  # fmt: skip
        super().__init__(cells.gru, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, device=device, dtype=dtype, **known_options("GRU", options))  # fmt: skip
