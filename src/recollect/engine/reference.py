"""The truth: the cell's own function in a plain loop over time.

Any dtype, any device, differentiable as often as torch is. Every kernel is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from recollect.cells.cell import Cell
from recollect.engine.plan import Variant

# Called with (index of the step in time, its states [rows, H] as they leave the step); returns the states
# that the next step and the output are to use. Diagnosis cuts the graph here.
Tap = Callable[[int, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


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
        resets: [N] bool; a row's states return to their initial values before the step.
        feed_mask: [B, F]; W_hh multiplies ``feed_mask * h``.
        keep: for each state [N, its size], or [its size] for all rows; how much of its old value it keeps.
        all_states: return every state of every step, not only the output.
        checkpoint: the steps of the segments that kernels train in, or ``"auto"``; see `engine.segments`.
    """

    resets: torch.Tensor | None = None
    feed_mask: torch.Tensor | None = None
    keep: Sequence[torch.Tensor] = ()
    all_states: bool = False
    checkpoint: int | str | None = None

    @property
    def variant(self) -> Variant:
        """The kind of kernel that serves such a call."""
        if self is PLAIN:  # most calls by far
            return _PLAIN
        return Variant(bool(self.keep), self.feed_mask is not None, self.resets is not None, self.all_states)


PLAIN, _PLAIN = Extras(), Variant()

# y [N, F] or [T, B, F] (and the other states, where all are wanted), and each state [1, B, its size] at the end.
Result = tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]


def run(
    cell: Cell,
    x: torch.Tensor,
    batch_sizes: Sequence[int],
    states: Sequence[torch.Tensor] | None,
    weights: Weights,
    extras: Extras = PLAIN,
    *,
    reverse: bool = False,
    tap: Tap | None = None,
) -> Result:
    """Run one layer in one direction over packed rows.

    Args:
        cell: the step.
        x: [N, I], the rows of step 0, then of step 1, ...; N is the sum of ``batch_sizes``. Or [T, B, I], where all
            rows are active at every step.
        batch_sizes: how many rows are active at each step, never growing (`PackedSequence`'s layout); at least
            one step, which may have no rows.
        states: initial value of each state, [1, B, its size]; rows sorted by length, longest first. None for zeros,
            where every row has a step.
        weights: of the layer and direction.
        extras: what the call adds to the plain recurrence.
        reverse: each row from its last step to its first.
        tap: see `Tap`.

    Returns:
        ``(outputs, final)``: y [N, F] or [T, B, F], in the layout of ``x``, followed by the other states where
        ``extras.all_states``, and each state [1, B, its size] after each row's last processed step.
    """
    gates, linear = len(cell.gates), torch.nn.functional.linear
    sizes = list(batch_sizes)
    inputs = linear(x.flatten(0, -2), weights.ih, weights.bias_ih).split(sizes)
    starts = [state.squeeze(0) for state in states or zero_states(cell, x, sizes[0], weights)]
    resets = extras.resets.split(sizes) if extras.resets is not None else ()
    keep = [each.split(sizes) if each.dim() > 1 else [each] * len(sizes) for each in extras.keep]
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
            new = tap(t, new)
        left[t] = new
        whole = rows == current[0].shape[0]
        current = [
            value if whole else torch.cat([value, state[rows:]]) for value, state in zip(new, current, strict=True)
        ]
    wanted = len(starts) if extras.all_states else 1
    outputs = (torch.cat([new[place] for new in left]) for place in range(wanted))
    dense = x.dim() == 3
    return (
        tuple(y.unflatten(0, x.shape[:2]) if dense else y for y in outputs),
        tuple(state.unsqueeze(0) for state in current),
    )


def zero_states(cell: Cell, x: torch.Tensor, batch: int, weights: Weights, count: int = 1) -> tuple[torch.Tensor, ...]:
    """Zeros for each state, [count, B, its size], of the kind of ``x``."""
    first, hidden = weights.hh.shape[1], weights.hh.shape[0] // len(cell.gates)
    return tuple(x.new_zeros(count, batch, hidden if place else first) for place in range(len(cell.states)))
