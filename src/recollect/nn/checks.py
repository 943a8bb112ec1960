"""What a module checks before it runs: its sizes, its input, its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from recollect.cells.cell import Cell
from recollect.engine.memory import check_memory
from recollect.errors import InputError
from recollect.nn.rows import checked_sizes, moved


def check_sizes(**sizes: object) -> None:
    """Raise InputError unless every size is a positive whole number."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"{name} must be a positive whole number", given=size, expected=">= 1")


def rows_of(x: Any) -> Any:
    """The tensor itself, or the rows of a PackedSequence."""
    # Not `x.data` for both: a tensor's own is refused under vmap.
    return x.data if isinstance(x, PackedSequence) else x


def packed_batch(x: PackedSequence) -> int:
    """B of a PackedSequence; InputError if its parts do not belong together."""
    if not torch.compiler.is_compiling():
        return checked_sizes(x)[0]
    # From a shape where there is one, which a compiler can follow; the operator checks when it runs.
    order = x.sorted_indices
    return int(x.batch_sizes[0]) if order is None else order.shape[0]


def check_probability(name: str, value: object) -> float:
    """Return ``value`` as a float, or raise InputError unless it is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise InputError(f"{name} must be a probability", given=value, expected="0 to 1")
    return float(value)


def check_projection(cell: Cell, hidden_size: int, proj_size: object) -> None:
    """Raise InputError unless a layer of the cell can project its output to so many features, or 0 for none."""
    if isinstance(proj_size, bool) or not isinstance(proj_size, int) or not 0 <= proj_size < hidden_size:
        raise InputError(
            "proj_size must be smaller than hidden_size", given=f"proj_size={proj_size}, hidden_size={hidden_size}",
            expected="0 (no projection) to hidden_size - 1",
        )  # fmt: skip
    if proj_size and f"prev.{cell.states[0]}" in cell.graph.leaves:
        raise InputError(
            f"cell {cell.name!r} reads its own output, so the output cannot be projected",
            given=f"proj_size={proj_size}, and a step that uses prev.{cell.states[0]} [B, H]",
            expected="a cell such as the LSTM, whose output goes to W_hh only",
            remedy="follow the layer with torch.nn.Linear",
        )


def check_checkpoint(value: object) -> int | str | None:
    """Return ``value``, or raise InputError unless it says how long segments are."""
    if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value  # pyright: ignore[reportReturnType]
    raise InputError(
        "checkpoint must say how long segments are", given=repr(value), expected='a number of steps, "auto" or None'
    )


def check_resets(resets: Any, x: torch.Tensor | PackedSequence) -> torch.Tensor:
    """Return the flags [T, B] or [B, T], [T] unbatched, or [N] of a PackedSequence; InputError unless they fit."""
    flags = resets.data if isinstance(resets, PackedSequence) else resets
    wanted = rows_of(x).shape[:-1]
    if not isinstance(flags, torch.Tensor) or flags.dtype != torch.bool or flags.shape != wanted:
        is_tensor = isinstance(flags, torch.Tensor)
        raise InputError(
            "resets must be one flag for each row and step",
            given=f"{flags.dtype} {tuple(flags.shape)}" if is_tensor else type(resets).__name__,
            expected=f"torch.bool {tuple(wanted)}, the layout of x without features",
            remedy="resets.bool()" if is_tensor and flags.shape == wanted else None,
        )
    return moved("resets", flags, rows_of(x).device)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise InputError unless parameters can be made in it."""
    if dtype is not None and not dtype.is_floating_point:
        raise InputError("a recurrent layer holds real numbers", given=dtype, expected="torch.float32 or the like")


def check_flags(**flags: object) -> None:
    """Raise InputError unless every flag is a truth value; a number in its place is a slip, as torch.nn has it."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise InputError(f"{name} must be True or False", given=f"{name}={flag!r}")


def autocast_is_on(x: torch.Tensor) -> bool:
    """Whether torch would choose the type in which operations on ``x`` run."""
    kind = x.device.type
    if kind == "cpu":
        return torch.is_autocast_enabled("cpu")
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(x: torch.Tensor) -> torch.autocast:
    """A context in which operations on ``x`` run in the type that they are given."""
    return torch.autocast(x.device.type, enabled=False)


def as_parameters(weight: torch.Tensor, values: Any) -> Any:
    """Under autocast, what other layers made in half precision comes in the type of a layer's parameters."""
    if isinstance(values, torch.Tensor):
        check_memory("an input or a state", values)  # torch would read without
    if isinstance(values, (tuple, list)) and not isinstance(values, PackedSequence):
        return tuple(as_parameters(weight, value) for value in values)
    return values.to(weight.dtype) if isinstance(values, (torch.Tensor, PackedSequence)) else values


def check_tensor(x: object) -> torch.Tensor:
    """Return ``x``, or raise InputError if it is no tensor."""
    if isinstance(x, torch.Tensor):
        return x
    raise InputError(
        "the input must be a tensor",
        given=type(x).__name__,
        expected="a torch.Tensor or a PackedSequence",
        remedy="torch.as_tensor(x, dtype=torch.float32)",
    )


def check_input(x: torch.Tensor, weight: torch.Tensor, input_size: int, layouts: Mapping[int, str]) -> None:
    """Raise InputError unless a module with this W_ih can take ``x``.

    Args:
        x: the input, features last.
        weight: W_ih; tells dtype and device.
        input_size: I.
        layouts: what ``x`` may be, by its number of dimensions, the usual one first.
    """
    if x.dim() not in layouts:
        expected = ", or ".join(layouts.values())
        raise InputError("the input has the wrong number of dimensions", given=tuple(x.shape), expected=expected)
    check_memory("the input", x)
    if x.layout is not torch.strided:
        raise InputError("the input must be dense", given=x.layout, expected=torch.strided, remedy="x.to_dense()")
    if not x.is_floating_point():
        raise InputError(
            "the input must hold floating-point numbers",
            given=x.dtype,
            expected=weight.dtype,
            remedy=f"x.to({weight.dtype}), or nn.Embedding for symbols",
        )
    if x.shape[-1] != input_size:
        raise InputError(
            "the input has the wrong number of features",
            given=f"{x.shape[-1]} in shape {tuple(x.shape)}",
            expected=f"input_size = {input_size} in the last dimension of {next(iter(layouts.values()))}",
        )
    for what, given, wanted in (("dtype", x.dtype, weight.dtype), ("device", x.device, weight.device)):
        if given != wanted and not (what == "dtype" and autocast_is_on(x)):
            raise InputError(
                f"the input and the layer differ in {what}",
                given=given,
                expected=wanted,
                remedy=f"x.to({str(wanted)!r})" if what == "device" else f"x.to({wanted})",
            )


def check_states(state: Any, shapes: Mapping[str, tuple[int, ...]], x: torch.Tensor, axes: str) -> list[torch.Tensor]:
    """The states as a list, zeros if ``state`` is None.

    Args:
        state: a tensor where the cell has one state, else a tuple.
        shapes: of each of the cell's states, by name and in order.
        x: the input; tells dtype and device.
        axes: what the dimensions of the shapes are, for the message.

    Raises:
        InputError: a state does not fit.
    """
    if state is None:
        zeros: list[torch.Tensor] = []
        for shape in shapes.values():
            # Nobody writes into a state, so the last one serves again where it fits.
            zeros.append(zeros[-1] if zeros and zeros[-1].shape == shape else x.new_zeros(shape))
        return zeros
    given: Any = (state,) if isinstance(state, torch.Tensor) else state
    if not isinstance(given, (tuple, list)) or len(given) != len(shapes):
        raise InputError(
            "the state has the wrong form",
            given=f"{len(given)} tensor(s)" if isinstance(given, (tuple, list)) else type(state).__name__,
            expected=f"one tensor, {next(iter(shapes))}" if len(shapes) == 1 else f"({', '.join(shapes)})",
        )
    for (name, shape), each in zip(shapes.items(), given, strict=True):
        if not isinstance(each, torch.Tensor) or each.shape != shape:
            raise InputError(
                f"state {name!r} has the wrong shape",
                given=tuple(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__,
                expected=f"{shape}: {axes}",
            )
        check_memory(f"state {name!r}", each)
        if each.dtype != x.dtype or each.device != x.device or each.layout is not torch.strided:
            raise InputError(
                f"state {name!r} and the input differ",
                given=f"{each.dtype}, {each.layout}, on {each.device}",
                expected=f"{x.dtype}, {torch.strided}, on {x.device}",
            )
    return list(given)
