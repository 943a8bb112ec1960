"""A recurrent layer for any cell: layers, directions, dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from recollect.cells.cell import Cell
from recollect.engine import dispatch
from recollect.engine.reference import Weights
from recollect.errors import InputError
from recollect.nn.checks import check_input, check_sizes, check_states, check_tensor
from recollect.nn.rows import Rows, pack


class Recurrent(nn.Module):
    r"""Run a cell over a sequence, through one or more layers, in one or both directions.

    Args:
        cell: the time step, from `recollect.cells` or `recollect.cell`.
        input_size: I, features of the input.
        hidden_size: H, units of each state.
        num_layers: layers on top of each other; each takes the output of the one below.
        bias: whether the gates have biases b_ih and b_hh.
        batch_first: inputs and outputs are [B, T, features] rather than [T, B, features].
        dropout: probability of zeroing an output between layers, in training mode.
        bidirectional: run each layer from both ends and concatenate the outputs.
        device, dtype: where and in which type the parameters are made.

    Parameters, for layer k (with ``_reverse`` appended for the second direction), named and packed as in
    ``torch.nn``: ``weight_ih_l{k}`` [G * H, I or D * H], ``weight_hh_l{k}`` [G * H, H], ``bias_ih_l{k}`` and
    ``bias_hh_l{k}`` [G * H], ``vector_<name>_l{k}`` [H], where G is the number of the cell's gates, in its
    order. All start uniform in :math:`\pm 1 / \sqrt{H}`, as in ``torch.nn``; see `recollect.nn.init`.

    Raises:
        InputError: a size is not a positive whole number, or an argument is out of range.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(cell, Cell):
            raise InputError(
                "a recurrent layer needs a cell",
                given=cell,
                expected="a Cell, such as recollect.cells.lstm",
                remedy="decorate your step with @recollect.cell(gates=..., states=...)",
            )
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise InputError("dropout must be a probability", given=dropout, expected="0 to 1")
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional = bidirectional
        self._names: dict[str, list[str]] = {}
        rows = len(cell.gates) * hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * self._directions
            for suffix in self._suffixes(layer):
                shapes = {f"weight_ih_{suffix}": (rows, width), f"weight_hh_{suffix}": (rows, hidden_size)}
                if bias:
                    shapes |= {f"bias_ih_{suffix}": (rows,), f"bias_hh_{suffix}": (rows,)}
                shapes |= {f"vector_{name}_{suffix}": (hidden_size,) for name in cell.vectors}
                self._names[suffix] = list(shapes)
                for name, shape in shapes.items():
                    self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"][: self._directions]

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform in ±1/sqrt(H), in the order torch.nn draws them."""
        draw_like_torch(self, self.hidden_size)

    def forward(
        self,
        x: torch.Tensor | PackedSequence,
        state: torch.Tensor | Sequence[torch.Tensor] | None = None,
        *,
        lengths: torch.Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, Any]:
        """Run the layer over a batch of sequences.

        Args:
            x: [T, B, I]; [B, T, I] with ``batch_first``; [T, I] unbatched; or a PackedSequence.
            state: the initial states in the order of the cell's, each [layers * directions, B, H] (without B
                for unbatched input); a single tensor where the cell has one state. Zeros if None.
            lengths: [B] valid steps of each row, in any order, 0 allowed. Outputs past a row's length are 0
                and its final state is the one after its last valid step; padding is never read.

        Returns:
            ``(y, state)``: the outputs in the layout of ``x`` with ``directions * H`` features, and the final
            states in the form described for ``state``.

        Raises:
            InputError: a shape, dtype, device, state or length does not fit.
        """
        self._check_input(x)
        rows = pack(x, lengths, batch_first=self.batch_first)
        initial = self._initial_states(state, rows)
        y, final = self._run(rows, initial)
        finals = tuple(rows.unsort(each) for each in final)
        if rows.unbatched:
            finals = tuple(each.squeeze(1) for each in finals)
        return rows.restore(y), finals[0] if len(self.cell.states) == 1 else finals

    def _run(self, rows: Rows, initial: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run all layers over packed rows; states are [layers * directions, B, H] in the rows' order."""
        x = rows.data
        finals: list[tuple[torch.Tensor, ...]] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = nn.functional.dropout(x, self.dropout)
            outputs = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                place = layer * self._directions + direction
                y, final = dispatch.run(
                    self.cell,
                    x,
                    rows.batch_sizes,
                    [state[place] for state in initial],
                    self._weights(suffix),
                    reverse=direction == 1,
                    label=suffix,
                )
                outputs.append(y)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        if len(finals) == 1:
            return x, [state.unsqueeze(0) for state in finals[0]]
        return x, [torch.stack(each) for each in zip(*finals, strict=True)]

    def _weights(self, suffix: str) -> Weights:
        """The parameters of one layer and direction."""
        # As attributes where a parametrisation has taken their place.
        own = self._parameters
        found: list[Any] = [own[name] if name in own else getattr(self, name) for name in self._names[suffix]]
        ih, hh, *rest = found
        bias_ih, bias_hh, *vectors = rest if self.bias else (None, None, *rest)
        return Weights(ih, hh, bias_ih, bias_hh, vectors)

    def flatten_parameters(self) -> None:
        """Do nothing: our kernels need no such call, and models written for torch.nn make it."""

    def backend_for(self, x: torch.Tensor | PackedSequence) -> str:
        """Say which backend would serve ``self(x)``, and why not the others.

        Returns:
            A sentence that begins with the backend's name, such as ``"llvm: ..."``.
        """
        return str(dispatch.choose(check_tensor(x.data if isinstance(x, PackedSequence) else x)))

    def _check_input(self, x: Any) -> None:
        usual = "[B, T, I]" if self.batch_first else "[T, B, I]"
        packed = isinstance(x, PackedSequence)
        layouts = ("[N, I]",) if packed else (usual, "[T, I] for one sequence")
        weight: torch.Tensor = self.weight_ih_l0  # pyright: ignore[reportAssignmentType]
        check_input(check_tensor(x.data if packed else x), weight, self.input_size, layouts)

    def _initial_states(self, state: Any, rows: Rows) -> list[torch.Tensor]:
        layers, batch = self.num_layers * self._directions, () if rows.unbatched else (rows.batch,)
        axes = "layers * directions, " + ("" if rows.unbatched else "batch, ") + "hidden_size"
        states = check_states(state, self.cell.states, rows.data, (layers, *batch, self.hidden_size), axes)
        if rows.unbatched:
            states = [each.unsqueeze(1) for each in states]
        if rows.order is not None and state is not None:
            states = [each.index_select(1, rows.order) for each in states]
        return states

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows in the brackets."""
        parts = [self.cell.name, str(self.input_size), str(self.hidden_size)]
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        parts += [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join(parts)


def draw_like_torch(module: nn.Module, hidden_size: int) -> None:
    """Draw all parameters of a module, uniform in ±1/sqrt(H); the same seed gives torch.nn's values."""
    bound = 1.0 / math.sqrt(hidden_size)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -bound, bound)
