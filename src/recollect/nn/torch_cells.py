"""torch.nn's cells: one time step at a time, for a loop that is the user's.

Each call lays the weights out anew, so a sequence belongs into a layer: there the kernels run the loop. A
single step of a small batch takes up to twice the time of torch.nn's own cell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from recollect import cells
from recollect.cells.cell import Cell
from recollect.engine import dispatch
from recollect.engine.layout import dense
from recollect.engine.plan import Variant
from recollect.engine.precision import is_bfloat16
from recollect.engine.reference import PLAIN, Direction, Extras, Weights
from recollect.nn import compiled, tracing
from recollect.nn.checks import (
    as_parameters,
    autocast_is_on,
    check_dtype,
    check_flags,
    check_input,
    check_sizes,
    check_states,
    check_tensor,
    without_autocast,
)
from recollect.nn.recurrent import draw_like_torch
from recollect.nn.stack import Stack
from recollect.nn.torch_compat import rnn_cell


class TorchCell(tracing.RefusesScripts):
    """One step of a cell, with torch.nn's parameter names: ``weight_ih, weight_hh, bias_ih, bias_hh``."""

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(self, cell: Cell, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any) -> None:
        nn.Module.__init__(self)  # not super's, which is torch.nn's own cell
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_flags(bias=bias)
        check_dtype(dtype)
        self.cell, self.input_size, self.hidden_size, self.bias = cell, input_size, hidden_size, bias
        rows = len(cell.gates) * hidden_size
        shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else {}
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            shape = shapes.get(name)
            made = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform in ±1/sqrt(H), in the order torch.nn draws them."""
        draw_like_torch(self.parameters(), self.hidden_size)

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002  (torch.nn's own name for it)
        hx: torch.Tensor | Sequence[torch.Tensor] | None = None,
    ) -> Any:
        """Run one step.

        Args:
            input: [B, I], or [I] for one sequence.
            hx: the states one step ago, [B, H] or [H] each; a tuple where the cell has several. Zeros if None.

        Returns:
            The new states, in the form of ``hx``.

        Raises:
            InputError: a shape, dtype or device does not fit.
        """
        if (tracer := tracing.tracer_of(input, hx)) is not None:
            return tracing.as_node(tracer, self, (input, hx), {})
        tracing.refuse_onnx()
        x, weight = check_tensor(input), self.weight_ih
        autocast = autocast_is_on(x)
        if autocast:
            x, hx = as_parameters(weight, x), as_parameters(weight, hx)
        check_input(x, weight, self.input_size, {2: "[B, I]", 1: "[I] for one sequence"})
        unbatched = x.dim() == 1
        axes = "hidden_size" if unbatched else "batch, hidden_size"
        states = check_states(hx, dict.fromkeys(self.cell.states, (*x.shape[:-1], self.hidden_size)), x, axes)
        if unbatched:
            x, states = x.unsqueeze(0), [each.unsqueeze(0) for each in states]
        with without_autocast(x) if autocast else contextlib.nullcontext():
            new = self._step(x, states)
        if unbatched:
            new = [each.squeeze(0) for each in new]
        return new[0] if len(new) == 1 else tuple(new)

    def _step(self, x: torch.Tensor, states: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        biases, bfloat16 = (self.bias_ih, self.bias_hh), is_bfloat16(x.dtype)
        if torch.compiler.is_compiling():
            stack = Stack(self.cell, 1, False, False, self.bias, False, False, False, False, False, bfloat16=bfloat16)
            flat = [self.weight_ih, self.weight_hh, *(biases if self.bias else ())]
            _, new = compiled.run(stack, x.unsqueeze(0), None, None, [each.unsqueeze(0) for each in states], flat, [])
            return [each.squeeze(0) for each in new]
        weights = Weights(self.weight_ih, self.weight_hh, *biases)
        x, rows = x.unsqueeze(0), [each.unsqueeze(0) for each in states]
        direction = Direction(rows, weights, Extras(bfloat16=True) if bfloat16 else PLAIN, False, "cell")
        [(_, new)] = dispatch.run(self.cell, x, dense(x.shape[1], 1), [direction])
        return [each.squeeze(0) for each in new]

    def backend_for(self, x: torch.Tensor) -> str:
        """Say which backend would serve ``self(x)``, and why not the others."""
        x = check_tensor(x)
        return str(dispatch.choose(self.cell, x, variant=Variant(bfloat16=is_bfloat16(x.dtype))))

    def extra_repr(self) -> str:
        """What ``print(cell)`` shows in the brackets."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(TorchCell, nn.RNNCell):
    """One step of the simple recurrent cell; a drop-in for ``torch.nn.RNNCell``.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
                 device: Any = None, dtype: Any = None) -> None:  # fmt: skip
        super().__init__(rnn_cell(nonlinearity), input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def extra_repr(self) -> str:
        """What ``print(cell)`` shows in the brackets."""
        return super().extra_repr() + ("" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}")


class LSTMCell(TorchCell, nn.LSTMCell):
    """One step of the LSTM; a drop-in for ``torch.nn.LSTMCell``."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
                 dtype: Any = None) -> None:  # fmt: skip
        super().__init__(cells.lstm, input_size, hidden_size, bias, device, dtype)


class GRUCell(TorchCell, nn.GRUCell):
    """One step of the GRU; a drop-in for ``torch.nn.GRUCell``."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
                 dtype: Any = None) -> None:  # fmt: skip
        super().__init__(cells.gru, input_size, hidden_size, bias, device, dtype)
