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

Here the last step of a chunk learns from ``window`` steps, and the first from itself alone. With a shorter
``stride`` the chunks overlap: each brings ``stride`` new steps, which alone are in the loss, after
``window - stride`` steps that are run again so that the gradient can go back through them. The state to
carry is then not that after the chunk but that before the next one::

    state = None
    for chunk in tbptt(x, y, window=50, stride=10):
        x_chunk, y_chunk = chunk
        optimizer.zero_grad()
        output, _ = model(x_chunk, state)
        loss(chunk.newest(output), y_chunk).backward()
        state = chunk.carry(model, state)
        clip_by_global_norm(model.parameters(), max_norm=1.0)
        optimizer.step()

This is Williams and Peng's BPTT(h; h') with h = window and h' = stride ("An efficient gradient-based
algorithm for on-line training of recurrent network trajectories", Neural Computation 2(4), 1990). Each
update costs ``window`` steps forward and back, and ``stride`` more forward for the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from recollect.errors import InputError
from recollect.training._arguments import whole_number


class Chunk(tuple[Tensor, Tensor]):
    """A pair ``(x_chunk, y_chunk)`` that knows how it lies in the whole; made by :func:`tbptt`.

    Attributes:
        advance: the number of steps of ``x_chunk`` that are over when the next chunk begins: so far the
            state moves on. In the last chunk it is all of them.
        dim: the dimension of time.
    """

    advance: int
    dim: int

    def __new__(cls, x: Tensor, y: Tensor, advance: int, dim: int) -> Chunk:
        chunk = super().__new__(cls, (x, y))
        chunk.advance, chunk.dim = advance, dim
        return chunk

    def newest(self, output: Tensor) -> Tensor:
        """The outputs of the steps that ``y_chunk`` has targets for, the last of the chunk: a view."""
        steps = self[1].shape[self.dim]
        return output.narrow(self.dim, output.shape[self.dim] - steps, steps)

    def carry(self, model: Callable[[Tensor, Any], tuple[Any, Any]], state: Any) -> Any:
        """The state before the next chunk, from ``state`` before this one, without a graph.

        Call it before the optimiser's step: the state is then the one that this chunk's outputs came from
        (where nothing is drawn at random, to the rounding).

        Args:
            model: called as ``model(x, state)``; returns the outputs and the state.
            state: what was given to ``model`` with this chunk.
        """
        if not self.advance:
            return detach_state(state)
        with torch.no_grad():
            return detach_state(model(self[0].narrow(self.dim, 0, self.advance), state)[1])


def tbptt(x: Tensor, y: Tensor, window: int, stride: int | None = None, dim: int = 0) -> Iterator[Chunk]:
    """Cut a sequence and its targets into chunks along time.

    Each chunk ends ``stride`` steps after the one before, or with the sequence, and begins ``window`` steps
    before its end, or with the sequence; its targets are those of its new steps. So each target is in one
    chunk, and its gradient goes back at least ``window - stride + 1`` and at most ``window`` steps, its own
    among them. With ``stride`` equal to ``window`` no step is in two chunks, and the last may be shorter.

    Args:
        x: inputs, time along dimension ``dim``: [T, B, I], or [B, T, I] with ``dim=1``.
        y: targets with the same T along the same dimension.
        window: steps in a chunk, which is how far the gradient goes back. With ``window >= T`` it is that
            of full BPTT, in one chunk if there is no ``stride``.
        stride: steps between updates, at most ``window``; None means ``window``, where chunks do not overlap.
        dim: the dimension of time; a negative one counts from the end of ``x``.

    Returns:
        An iterator of ``(x_chunk, y_chunk)``, views of ``x`` and ``y``. Each pair also knows how the state
        is carried: see :class:`Chunk`.

    Raises:
        InputError: at the call, for arguments that do not fit together or T = 0.
    """
    window = whole_number("window", window, at_least=1)
    stride = window if stride is None else whole_number("stride", stride, at_least=1)
    if stride > window:
        raise InputError(
            "steps would be left out between one chunk and the next",
            given=f"window={window}, stride={stride}",
            expected="stride at most window",
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
    return _chunks(x, y, window, stride, time)


def _chunks(x: Tensor, y: Tensor, window: int, stride: int, dim: int) -> Iterator[Chunk]:
    steps = x.shape[dim]
    firsts = range(0, steps, stride)  # of the new steps
    ends = [min(first + stride, steps) for first in firsts]
    # Chunks that do not overlap never do, at the end of the sequence either.
    starts = list(firsts) if stride == window else [max(0, end - window) for end in ends]
    for first, start, end, next_start in zip(firsts, starts, ends, [*starts[1:], steps], strict=True):
        x_chunk, y_chunk = x.narrow(dim, start, end - start), y.narrow(dim, first, end - first)
        yield Chunk(x_chunk, y_chunk, advance=next_start - start, dim=dim)


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
