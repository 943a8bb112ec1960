"""A recurrent layer for any cell: layers, directions, projection, dropout, zoneout, resets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from recollect.cells.cell import Cell
from recollect.engine import dispatch, plain
from recollect.engine.autograd import obstacle
from recollect.engine.masks import Masks
from recollect.engine.plan import Variant
from recollect.engine.precision import is_bfloat16
from recollect.errors import InputError, NotYetError
from recollect.nn import compiled, tracing
from recollect.nn.checks import (
    as_parameters,
    autocast_is_on,
    check_checkpoint,
    check_dtype,
    check_flags,
    check_input,
    check_probability,
    check_projection,
    check_resets,
    check_sizes,
    check_states,
    check_tensor,
    packed_batch,
    rows_of,
    without_autocast,
)
from recollect.nn.rows import lay_out
from recollect.nn.stack import Stack


class Options(TypedDict, total=False):
    """Arguments of `Recurrent` that torch.nn's layers do not have; ours take them by keyword."""

    recurrent_dropout: float
    zoneout: float | Sequence[float]
    learned_initial_state: bool
    checkpoint: int | str | None


class Recurrent(tracing.RefusesScripts):
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
        proj_size: P; if above 0, the output of a step is h W_hr', with P < H features, and it is what W_hh
            multiplies (H. Sak, A. Senior, F. Beaufays, "Long short-term memory recurrent neural network
            architectures", 2014). For cells whose step does not read its own output, such as the LSTM.
        recurrent_dropout: probability of zeroing a unit of h where W_hh multiplies it, in training mode; one
            mask for a whole sequence, the same for all gates (Y. Gal, Z. Ghahramani, "A theoretically grounded
            application of dropout in recurrent neural networks", 2016).
        zoneout: probability that a unit of a state stays as it was, at each step, in training mode; in eval
            mode the mean of both takes its place (D. Krueger et al., "Zoneout", 2017). One number, or one for
            each state in the cell's order.
        learned_initial_state: the states that a sequence starts from when none are given are parameters,
            zeros at first.
        checkpoint: train in segments of so many steps, or ``"auto"``: the memory that training needs is then that of
            one segment, for one more forward pass. Gradients equal the unsegmented ones to rounding; there are no
            second ones. ``"auto"`` cuts sequences that need more than 256 MiB in each layer and direction into
            segments of 32 MiB. Where other backends than llvm serve, or under ``torch.compile``, nothing is cut.
        device, dtype: where and in which type the parameters are made.

    Parameters, for layer k (with ``_reverse`` appended for the second direction), named and packed as in
    ``torch.nn``: ``weight_ih_l{k}`` [G * H, I or D * F], ``weight_hh_l{k}`` [G * H, F], ``bias_ih_l{k}`` and
    ``bias_hh_l{k}`` [G * H], ``weight_hr_l{k}`` [P, H], ``vector_<name>_l{k}`` [H], ``initial_<state>_l{k}``
    [H] ([F] for the first state), where G is the number of the cell's gates, in its order, D the number of
    directions and F the number of output features of a direction: P, or H without a projection. All but the
    initial states start uniform in :math:`\pm 1 / \sqrt{H}`, as in ``torch.nn``; see `recollect.nn.init`.

    Every random mask follows from torch's generator of the input's device, before any layer runs: a seed repeats it
    on any number of threads, for every backend; under ``torch.compile`` or torch.func it may be another.

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
        proj_size: int = 0,
        recurrent_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        learned_initial_state: bool = False,
        checkpoint: int | str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not super's: the next in line may be torch.nn's own layer
        if not isinstance(cell, Cell):
            raise InputError(
                "a recurrent layer needs a cell",
                given=cell,
                expected="a Cell, such as recollect.cells.lstm",
                remedy="decorate your step with @recollect.cell(gates=..., states=...)",
            )
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_flags(bias=bias, batch_first=batch_first, bidirectional=bidirectional,
                    learned_initial_state=learned_initial_state)  # fmt: skip
        check_dtype(dtype)
        check_projection(cell, hidden_size, proj_size)
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.bidirectional = bias, batch_first, bidirectional
        self.proj_size, self.learned_initial_state = proj_size, learned_initial_state
        self.checkpoint = check_checkpoint(checkpoint)
        self.dropout = check_probability("dropout", dropout)
        if self.dropout and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={dropout} and num_layers=1",  # in torch.nn's own words
                stacklevel=3,
            )
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        each = list(zoneout) if isinstance(zoneout, (tuple, list)) else [zoneout] * len(cell.states)
        if len(each) != len(cell.states):
            raise InputError(
                "zoneout must be one number, or one for each state", given=zoneout, expected=f"{', '.join(cell.states)}"
            )
        self.zoneout = [check_probability("zoneout", number) for number in each]

        self._flat_weights_names: list[str] = []  # as torch.nn's layers call them
        features, rows = proj_size or hidden_size, len(cell.gates) * hidden_size
        initial: dict[str, int] = {}
        for layer in range(num_layers):
            width = input_size if layer == 0 else features * self._directions
            for suffix in self._suffixes(layer):
                shapes = {f"weight_ih_{suffix}": (rows, width), f"weight_hh_{suffix}": (rows, features)}
                if bias:
                    shapes |= {f"bias_ih_{suffix}": (rows,), f"bias_hh_{suffix}": (rows,)}
                if proj_size:
                    shapes |= {f"weight_hr_{suffix}": (proj_size, hidden_size)}
                shapes |= {f"vector_{name}_{suffix}": (hidden_size,) for name in cell.vectors}
                self._flat_weights_names += shapes
                for name, shape in shapes.items():
                    self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
                initial |= {f"initial_{name}_{suffix}": size for name, size in self._state_sizes().items()}
        for name, size in initial.items() if learned_initial_state else ():
            self.register_parameter(name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"][: self._directions]

    def _state_sizes(self) -> dict[str, int]:
        first, *others = self.cell.states
        return {first: self.proj_size or self.hidden_size, **dict.fromkeys(others, self.hidden_size)}

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform in ±1/sqrt(H), in the order torch.nn draws them; initial states are 0."""
        drawn = [parameter for name, parameter in self.named_parameters() if not name.startswith("initial_")]
        draw_like_torch(drawn, self.hidden_size)
        for name, parameter in self.named_parameters():
            if name.startswith("initial_"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        x: torch.Tensor | PackedSequence,
        state: torch.Tensor | Sequence[torch.Tensor] | None = None,
        *,
        lengths: torch.Tensor | Sequence[int] | None = None,
        resets: torch.Tensor | PackedSequence | None = None,
        return_states: bool = False,
    ) -> Any:
        """Run the layer over a batch of sequences.

        Args:
            x: [T, B, I]; [B, T, I] with ``batch_first``; [T, I] unbatched; or a PackedSequence.
            state: the initial states in the order of the cell's, each [layers * directions, B, H] (without B
                for unbatched input; P in place of H for the first with ``proj_size``); a single tensor where the
                cell has one state. If None, zeros or what was learned.
            lengths: [B] valid steps of each row, in any order, 0 allowed. Outputs past a row's length are 0
                and its final state is the one after its last valid step; padding is never read.
            resets: bool, the layout of ``x`` without features (for a PackedSequence: [N] in the order of its
                data, or packed alike). Where it is True, a row's states return to their initial values before
                that step is taken, in every layer and in each direction's own order.
            return_states: also return every state of every step.

        Returns:
            ``(y, state)``: the outputs in the layout of ``x`` with ``directions * H`` features, and the final
            states in the form described for ``state``. With ``return_states``, ``(y, state, states)``:
            ``states`` are those of the last layer as they leave each step, in the layout of ``y``: a tuple in the
            order of the cell's (the first is ``y``), a single tensor where it has one.

        Raises:
            InputError: a shape, dtype, device, state or length does not fit.
        """
        if state is None and resets is None and not return_states:
            results = self._run_plain(x, lengths)
            if results is not None:
                return results
        if (tracer := tracing.tracer_of(x, state)) is not None:
            options = {"lengths": lengths, "resets": resets, "return_states": return_states}
            return tracing.as_node(tracer, self, (x, state), options)
        tracing.refuse_onnx()
        parameters = self._parameters_in_order()
        self._check_input(x, parameters[0])
        batch: Any = x  # a tensor or a PackedSequence, from here on as the parameters need it
        packed, axis = isinstance(x, PackedSequence), 0 if self.batch_first else 1
        autocast = autocast_is_on(rows_of(x))
        if autocast:
            batch, state = as_parameters(parameters[0], x), as_parameters(parameters[0], state)
        flags = None if resets is None else check_resets(resets, x)
        if flags is not None and self.checkpoint is not None:
            raise NotYetError("resets in a layer that trains in segments are not built yet", remedy="checkpoint=None")
        unbatched = not packed and batch.dim() == 2
        if unbatched:
            batch, flags = batch.unsqueeze(axis), None if flags is None else flags.unsqueeze(axis)
        rows = packed_batch(batch) if packed else batch.shape[axis]
        initial = self._initial_states(state, batch, rows, unbatched=unbatched)
        noise = self._noise(batch, rows)
        arguments = (self._stack(return_states, parameters[0].dtype), batch, lengths, flags, initial, parameters, noise)
        run_stack: Any = compiled.run if torch.compiler.is_compiling() else Stack.run
        if autocast:
            with without_autocast(rows_of(batch)):
                outputs, final = run_stack(*arguments)
        else:
            outputs, final = run_stack(*arguments)
        if unbatched:
            outputs, final = [each.squeeze(axis) for each in outputs], [each.squeeze(1) for each in final]
        results = (outputs[0], _one_or_all(final))
        return (*results, _one_or_all(outputs)) if return_states else results

    def _run_plain(self, x: Any, lengths: Any = None) -> Any:
        """What `forward` returns for a call that adds nothing else to one layer in one direction, or None.

        Those are most calls by far, and a small layer's kernels take less time than the long way to them.
        """
        if not isinstance(x, torch.Tensor) or obstacle(x):  # first, as a compiler that follows this call stops here
            return None
        added = (self.bidirectional, self.proj_size, self.learned_initial_state, self.checkpoint, *self.zoneout)
        dropped = self.training and self.recurrent_dropout
        if self.num_layers > 1 or dropped or any(added):
            return None
        if not dispatch.are_kernels_chosen() or is_bfloat16(x.dtype):
            return None
        first = self.batch_first
        found = plain.run(
            self.cell, x, self._parameters_in_order(), self.hidden_size,
            None if lengths is None else lambda: lay_out(x, lengths, batch_first=first),
            bias=self.bias, batch_first=first,
        )  # fmt: skip
        return None if found is None else (found[0], _one_or_all(found[1:]))

    def _stack(self, all_states: bool, dtype: torch.dtype) -> Stack:
        return Stack(
            self.cell, self.num_layers, self.bidirectional, self.batch_first, self.bias, self.proj_size > 0,
            dropout=self.training and self.dropout > 0 and self.num_layers > 1,
            recurrent_dropout=self.training and self.recurrent_dropout > 0,
            zoneout=any(self.zoneout),
            all_states=all_states,
            checkpoint=self.checkpoint,
            bfloat16=is_bfloat16(dtype),
        )  # fmt: skip

    def _noise(self, x: torch.Tensor | PackedSequence, batch: int) -> list[torch.Tensor]:
        """What `Stack.run` takes as noise, in its order."""
        if not any(self.zoneout) and not (self.training and (self.dropout or self.recurrent_dropout)):
            return []
        data, noise = rows_of(x), []
        masks, rows = Masks(data), data.shape[:-1]
        sizes = self._state_sizes()
        features = sizes[self.cell.states[0]]
        runs = self.num_layers * self._directions
        if self.training and self.dropout:  # torch.nn's own from the same seed, and so time-major
            turned = self.batch_first and len(rows) > 1
            ones = data.new_ones(*(rows[::-1] if turned else rows), features * self._directions)
            each = [nn.functional.dropout(ones, self.dropout) for _ in range(self.num_layers - 1)]
            noise += [mask.transpose(0, 1) for mask in each] if turned else each
        if self.training and self.recurrent_dropout:
            noise += [masks.dropout((batch, features), self.recurrent_dropout) for _ in range(runs)]
        if any(self.zoneout):
            for _ in range(runs):
                for size, keep in zip(sizes.values(), self.zoneout, strict=True):
                    drawn = self.training and keep > 0
                    noise.append(masks.bernoulli((*rows, size), keep) if drawn else data.new_full((size,), keep))
        return noise

    def _parameters_in_order(self) -> list[torch.Tensor]:
        """The parameters of all layers and directions, without initial states."""
        # As attributes where a parametrisation has taken their place.
        own: dict[str, Any] = self._parameters
        return [own[name] if name in own else getattr(self, name) for name in self._flat_weights_names]

    @property
    def all_weights(self) -> list[list[torch.Tensor]]:
        """The parameters of each layer and direction, as torch.nn's layers list them."""
        flat, runs = self._parameters_in_order(), self.num_layers * self._directions
        each = len(flat) // runs
        return [flat[run * each : (run + 1) * each] for run in range(runs)]

    def flatten_parameters(self) -> None:
        """Do nothing: our kernels need no such call, and models written for torch.nn make it."""

    def backend_for(self, x: torch.Tensor | PackedSequence) -> str:
        """Say which backend would serve ``self(x)``, and why not the others.

        Returns:
            A sentence that begins with the backend's name, such as ``"llvm: ..."``.
        """
        rows = check_tensor(rows_of(x))
        dropped = self.training and self.recurrent_dropout > 0
        variant = Variant(any(self.zoneout), dropped, bfloat16=is_bfloat16(rows.dtype))
        return str(dispatch.choose(self.cell, rows, projected=self.proj_size > 0, variant=variant))

    def _check_input(self, x: Any, weight: torch.Tensor) -> None:
        # Almost every call, said briefly; what differs from it is looked at more closely.
        if (
            type(x) is torch.Tensor
            and x.dim() == 3
            and x.layout is torch.strided
            and x.shape[2] == self.input_size
            and x.dtype == weight.dtype
            and x.device == weight.device
            and x.shape[1 if self.batch_first else 0] > 0
        ):
            return
        usual = "[B, T, I]" if self.batch_first else "[T, B, I]"
        packed = isinstance(x, PackedSequence)
        layouts = {2: "[N, I]"} if packed else {3: usual, 2: "[T, I] for one sequence"}
        data = check_tensor(rows_of(x))
        check_input(data, weight, self.input_size, layouts)
        # A graph that is being traced would be bound to T >= 1 by this; the operator checks when it runs.
        time = 1 if self.batch_first and data.dim() == 3 else 0
        if not packed and not torch.compiler.is_compiling() and data.shape[time] == 0:
            raise InputError(
                "the input is empty: a sequence without steps", given=tuple(data.shape), expected=f"T >= 1 in {usual}",
                remedy="skip the call where there is nothing to read yet",
            )  # fmt: skip

    def _initial_states(self, state: Any, x: Any, batch: int, *, unbatched: bool) -> list[torch.Tensor] | None:
        """Each state [layers * directions, B, its size], in the caller's order of rows; None for zeros."""
        if state is None and not self.learned_initial_state and not torch.compiler.is_compiling():
            return None
        sizes, runs = self._state_sizes(), self.num_layers * self._directions
        if state is None and self.learned_initial_state:
            suffixes = [suffix for layer in range(self.num_layers) for suffix in self._suffixes(layer)]
            learned = []
            for name, size in sizes.items():
                own = {f"initial_{name}_{suffix}": (size,) for suffix in suffixes}
                parts = [getattr(self, each) for each in own]
                learned.append(torch.stack(check_states(parts, own, rows_of(x), "hidden_size")))
            return [each.unsqueeze(1).expand(runs, batch, -1) for each in learned]
        rows = () if unbatched else (batch,)
        axes = "layers * directions, " + ("" if unbatched else "batch, ") + "hidden_size"
        shapes = {name: (runs, *rows, size) for name, size in sizes.items()}
        states = check_states(state, shapes, rows_of(x), axes)
        return [each.unsqueeze(1) for each in states] if unbatched else states

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows in the brackets."""
        parts = [self.cell.name, str(self.input_size), str(self.hidden_size)]
        zoneout = self.zoneout[0] if len(set(self.zoneout)) == 1 else self.zoneout
        shown = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
                 "bidirectional": False, "recurrent_dropout": 0.0, "learned_initial_state": False,
                 "checkpoint": None}  # fmt: skip
        parts += [f"{name}={getattr(self, name)}" for name, value in shown.items() if getattr(self, name) != value]
        return ", ".join([*parts, *([f"zoneout={zoneout}"] if zoneout else [])])


def draw_like_torch(parameters: Iterable[torch.Tensor], hidden_size: int) -> None:
    """Draw parameters uniform in ±1/sqrt(H); the same seed gives torch.nn's values."""
    bound = 1.0 / math.sqrt(hidden_size)
    for parameter in parameters:
        nn.init.uniform_(parameter, -bound, bound)


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)
