"""The truth: the cell's own function in a plain loop over time.

Any dtype, any device, differentiable as often as torch is. Every kernel is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from recollect.cells.cell import Cell
from recollect.engine.layout import Layout
from recollect.engine.plan import Variant

if TYPE_CHECKING:
    from recollect.engine.watched import Watched


class Step(NamedTuple):
    """One step of a layer in one direction, for the rows that are active in it, the longest sequence first.

    Attributes:
        t: its index in time.
        inp, rec: the two shares of each gate's pre-activation, [rows, H].
        prev: the states that it began with, [rows, H] ([rows, F] the first); after a reset the initial ones.
        new: the states as they leave it.
    """

    t: int
    inp: tuple[torch.Tensor, ...]
    rec: tuple[torch.Tensor, ...]
    prev: tuple[torch.Tensor, ...]
    new: tuple[torch.Tensor, ...]


# Called with each step that has rows; returns the states that the next step and the output are to use.
# Diagnosis cuts the graph here.
Tap = Callable[[Step], tuple[torch.Tensor, ...]]


class Weights(NamedTuple):
    """The parameters of one layer in one direction; F is P where there is a projection, else H.

    Attributes:
        ih: W_ih [G * H, I].
        hh: W_hh [G * H, F].
        bias_ih, bias_hh: [G * H] or None.
        hr: W_hr [P, H], which projects the output, or None.
        vectors: the per-unit parameters, [H] each.
    """

    ih: torch.Tensor
    hh: torch.Tensor
    bias_ih: torch.Tensor | None
    bias_hh: torch.Tensor | None
    hr: torch.Tensor | None = None
    vectors: Sequence[torch.Tensor] = ()


class Extras(NamedTuple):
    """What a call adds to the plain recurrence; see `Variant` for what each means.

    Attributes:
        resets: bool, the layout of x without features; a row's states return to their initial values before the step.
        feed_mask: [B, F], rows as in the states; W_hh multiplies ``feed_mask * h``.
        keep: for each state in the layout of x with its size as features, or [its size] for all rows; how much of
            its old value it keeps.
        all_states: return every state of every step, not only the output.
        checkpoint: the steps of the segments that kernels train in, or ``"auto"``; see `engine.segments`.
        bfloat16: kernels round what they multiply; the loops in PyTorch do not.
        watched: what the call leaves for whoever watches it, or None; see `engine.watched`.
    """

    resets: torch.Tensor | None = None
    feed_mask: torch.Tensor | None = None
    keep: Sequence[torch.Tensor] = ()
    all_states: bool = False
    checkpoint: int | str | None = None
    bfloat16: bool = False
    watched: Watched | None = None

    @property
    def tensors(self) -> list[torch.Tensor | None]:
        """All that is a tensor in it."""
        return [] if self is PLAIN else [self.resets, self.feed_mask, *self.keep]

    def holding(self, tensors: Sequence[Any]) -> Extras:
        """These additions with other tensors in place of their own."""
        if self is PLAIN:
            return self
        resets, feed_mask, *keep = tensors
        return self._replace(resets=resets, feed_mask=feed_mask, keep=keep)

    @property
    def variant(self) -> Variant:
        """The kind of kernel that serves such a call."""
        if self is PLAIN:  # most calls by far
            return _PLAIN
        return Variant(
            bool(self.keep), self.feed_mask is not None, self.resets is not None, self.all_states, self.bfloat16
        )


PLAIN, _PLAIN = Extras(), Variant()


class Direction(NamedTuple):
    """What a layer has in one direction; see `run`.

    Attributes:
        label: of layer and direction, such as ``"l0_reverse"``, for whoever listens.
    """

    states: Sequence[torch.Tensor] | None
    weights: Weights
    extras: Extras
    reverse: bool
    label: str

    @property
    def parameters(self) -> list[torch.Tensor | None]:
        """All tensors of its weights."""
        return [*self.weights[:5], *self.weights.vectors]


# y in the layout of x (and the other states, where all are wanted), and each state [1, B, its size] at the end.
Result = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]


def run(
    cell: Cell,
    x: torch.Tensor,
    layout: Layout,
    states: Sequence[torch.Tensor] | None,
    weights: Weights,
    extras: Extras = PLAIN,
    *,
    reverse: bool = False,
    tap: Tap | None = None,
) -> Result:
    """Run one layer in one direction.

    Args:
        cell: the step.
        x: [T, B, I], [B, T, I] or [N, I], as ``layout`` says.
        layout: where its rows stand.
        states: initial value of each state, [1, B, its size]; rows sorted by length, longest first. None for zeros.
        weights: of the layer and direction.
        extras: what the call adds to the plain recurrence.
        reverse: each row from its last step to its first.
        tap: see `Tap`.

    Returns:
        ``(outputs, final)``: y in the layout of ``x`` with F features, zeros in padding, followed by the other states
        where ``extras.all_states``, and each state [1, B, its size] after each row's last processed step.
    """
    gates, linear = len(cell.gates), torch.nn.functional.linear
    sizes = list(layout.sizes)
    inputs = linear(layout.take(x), weights.ih, weights.bias_ih).split(sizes)
    starts = [state.squeeze(0) for state in states or zero_states(cell, x, layout.batch, weights)]
    resets = layout.take(extras.resets).split(sizes) if extras.resets is not None else ()
    keep = [layout.take(each).split(sizes) if each.dim() > 1 else [each] * len(sizes) for each in extras.keep]
    current = list(starts)
    left: list[tuple[torch.Tensor, ...]] = [()] * len(sizes)
    vec = cell.Vectors(*weights.vectors)
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        rows = sizes[t]
        prev = [state[:rows] for state in current]
        if resets:
            back = resets[t].unsqueeze(1)
            prev = [torch.where(back, start[:rows], state) for start, state in zip(starts, prev, strict=True)]
        fed = prev[0] if extras.feed_mask is None else prev[0] * extras.feed_mask[:rows]
        inp = cell.Shares(*inputs[t].chunk(gates, -1))
        rec = cell.Shares(*linear(fed, weights.hh, weights.bias_hh).chunk(gates, -1))
        new = cell(inp, rec, cell.States(*prev), vec)
        if weights.hr is not None:
            new = (linear(new[0], weights.hr), *new[1:])
        if keep:
            new = tuple(k[t] * old + (1 - k[t]) * s for k, old, s in zip(keep, prev, new, strict=True))
        if tap is not None and rows:
            new = tap(Step(t, inp, rec, tuple(prev), new))
        left[t] = new
        whole = rows == current[0].shape[0]
        current = [
            value if whole else torch.cat([value, state[rows:]]) for value, state in zip(new, current, strict=True)
        ]
    wanted = len(starts) if extras.all_states else 1
    outputs = tuple(layout.restore(torch.cat([new[place] for new in left])) for place in range(wanted))
    return outputs, tuple(state.unsqueeze(0) for state in current)


def zero_states(cell: Cell, x: torch.Tensor, batch: int, weights: Weights) -> tuple[torch.Tensor, ...]:
    """Zeros for each state, [1, B, its size], of the kind of ``x``."""
    first, hidden = weights.hh.shape[1], weights.hh.shape[0] // len(cell.gates)
    return tuple(x.new_zeros(1, batch, hidden if place else first) for place in range(len(cell.states)))
