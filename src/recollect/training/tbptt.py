"""Truncated backpropagation through time: a long sequence, learned from chunk by chunk.

The state is carried from one chunk to the next but cut off from the graph, so that the gradient goes
back at most ``window`` steps, while what the network remembers goes back to the start::

    state = None
    for x_chunk, y_chunk in tbptt(x, y, window=50):
        optimizer.zero_grad()
        output, state = model(x_chunk, state)
        loss(output, y_chunk).backward()
        clip_by_global_norm(model.parameters(), max_norm=1.0)
        optimizer.step()
        state = detach_state(state)

This is Williams and Peng's BPTT(h; h') with h = h' = window ("An efficient gradient-based algorithm for
on-line training of recurrent network trajectories", Neural Computation 2(4), 1990).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from recollect.errors import InputError, NotYetError
from recollect.training._arguments import whole_number


def tbptt(
    x: Tensor, y: Tensor, window: int, stride: int | None = None, dim: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a sequence and its targets into consecutive chunks along time.

    Args:
        x: inputs, time along dimension ``dim``: [T, B, I], or [B, T, I] with ``dim=1``.
        y: targets with the same T along the same dimension.
        window: steps in a chunk, which is how far the gradient goes back. The last chunk may be shorter;
            with ``window >= T`` there is one chunk and the gradient is that of full BPTT.
        stride: steps between updates; None means ``window``, and so far nothing else is built.
        dim: the dimension of time; a negative one counts from the end of ``x``.

    Returns:
        An iterator of ``(x_chunk, y_chunk)``, views of ``x`` and ``y``.

    Raises:
        InputError: at the call, for arguments that do not fit together or T = 0.
        NotYetError: ``stride`` differs from ``window``.
    """
    window = whole_number("window", window, at_least=1)
    if stride is not None and whole_number("stride", stride, at_least=1) != window:
        raise NotYetError(
            "tbptt with a stride of its own is not built yet",
            given=f"window={window}, stride={stride}",
            expected="stride equal to window, or None",
            remedy="leave stride out: each update then sees the next window steps",
        )
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise InputError(
            "tbptt cuts tensors", given=f"x {type(x).__name__}, y {type(y).__name__}", expected="two tensors"
        )
    time = dim + x.ndim if dim < 0 else dim
    if not 0 <= time < min(x.ndim, y.ndim):
        raise InputError(
            "x and y do not both have this time dimension",
            given=f"dim={dim}, x of shape {list(x.shape)}, y of shape {list(y.shape)}",
            expected="a dimension that both have",
        )
    if x.shape[time] != y.shape[time] or not x.shape[time]:
        raise InputError(
            "x and y must have the same number of time steps, at least one",
            given=f"{x.shape[time]} in x and {y.shape[time]} in y, along dimension {time}",
            remedy="give dim=1 if your tensors are [B, T, ...]",
        )
    return zip(x.split(window, time), y.split(window, time), strict=True)


def detach_state(state: Any) -> Any:
    """Cut a state off from the graph that made it; the values stay.

    Args:
        state: a tensor, None, or a tuple, named tuple, list or dict of states, nested as you like.

    Returns:
        The same structure with every tensor detached; it shares memory with ``state``.

    Raises:
        InputError: something in ``state`` is none of these.
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, dict):
        return {name: detach_state(part) for name, part in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*map(detach_state, state))
    if isinstance(state, tuple | list):
        return type(state)(map(detach_state, state))
    raise InputError(
        "a state cannot be detached",
        given=type(state).__name__,
        expected="a tensor, None, or a tuple, list or dict of these",
    )
