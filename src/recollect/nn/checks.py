"""What a module checks before it runs: its sizes, its input, its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from recollect.errors import InputError


def check_sizes(**sizes: object) -> None:
    """Raise InputError unless every size is a positive whole number."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"{name} must be a positive whole number", given=size, expected=">= 1")


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


def check_input(x: torch.Tensor, weight: torch.Tensor, input_size: int, layouts: Sequence[str]) -> None:
    """Raise InputError unless a module with this W_ih can take ``x``.

    Args:
        x: the input, features last.
        weight: W_ih; tells dtype and device.
        input_size: I.
        layouts: what ``x`` may be, such as ``("[T, B, I]", "[T, I] for one sequence")``, the usual one first.
    """
    if x.dim() not in [layout.partition("]")[0].count(",") + 1 for layout in layouts]:
        raise InputError(
            "the input has the wrong number of dimensions", given=tuple(x.shape), expected=", or ".join(layouts)
        )
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
            expected=f"input_size = {input_size} in the last dimension of {layouts[0]}",
        )
    if 0 in x.shape[:-1]:
        raise InputError(
            "the input is empty",
            given=tuple(x.shape),
            expected="at least one row and one step",
            remedy="skip the call for an empty batch",
        )
    for what, given, wanted in (("dtype", x.dtype, weight.dtype), ("device", x.device, weight.device)):
        if given != wanted:
            raise InputError(
                f"the input and the layer differ in {what}",
                given=given,
                expected=wanted,
                remedy=f"x.to({str(wanted)!r})" if what == "device" else f"x.to({wanted})",
            )


def check_states(
    state: Any, names: Sequence[str], x: torch.Tensor, shape: tuple[int, ...], axes: str
) -> list[torch.Tensor]:
    """The states as a list, zeros if ``state`` is None.

    Args:
        state: a tensor where the cell has one state, else a tuple.
        names: the cell's states.
        x: the input; tells dtype and device.
        shape: of each state.
        axes: what the dimensions of ``shape`` are, for the message.

    Raises:
        InputError: a state does not fit.
    """
    if state is None:
        zeros = x.new_zeros(shape)
        return [zeros for _ in names]
    given: Any = (state,) if isinstance(state, torch.Tensor) else state
    if not isinstance(given, tuple | list) or len(given) != len(names):
        raise InputError(
            "the state has the wrong form",
            given=f"{len(given)} tensor(s)" if isinstance(given, tuple | list) else type(state).__name__,
            expected=f"one tensor, {names[0]}" if len(names) == 1 else f"({', '.join(names)})",
        )
    for name, each in zip(names, given, strict=True):
        if not isinstance(each, torch.Tensor) or each.shape != shape:
            raise InputError(
                f"state {name!r} has the wrong shape",
                given=tuple(each.shape) if isinstance(each, torch.Tensor) else type(each).__name__,
                expected=f"{shape}: {axes}",
            )
        if each.dtype != x.dtype or each.device != x.device:
            raise InputError(
                f"state {name!r} and the input differ",
                given=f"{each.dtype} on {each.device}",
                expected=f"{x.dtype} on {x.device}",
            )
    return list(given)
