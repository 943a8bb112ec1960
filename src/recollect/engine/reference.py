"""The truth: the cell's own function in a plain loop over time.

Any dtype, any device, differentiable as often as torch is. Every kernel is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from recollect.cells.cell import Cell

# Called with (index of the step in time, its states [rows, H] as they leave the step); returns the states
# that the next step and the output are to use. Diagnosis cuts the graph here.
Tap = Callable[[int, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


class Weights(NamedTuple):
    """The parameters of one layer in one direction.

    Attributes:
        ih: W_ih [G * H, I].
        hh: W_hh [G * H, H].
        bias_ih, bias_hh: [G * H] or None.
        vectors: the per-unit parameters, [H] each.
    """

    ih: torch.Tensor
    hh: torch.Tensor
    bias_ih: torch.Tensor | None
    bias_hh: torch.Tensor | None
    vectors: Sequence[torch.Tensor] = ()


def run(
    cell: Cell,
    x: torch.Tensor,
    batch_sizes: Sequence[int],
    states: Sequence[torch.Tensor],
    weights: Weights,
    *,
    reverse: bool = False,
    tap: Tap | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Run one layer in one direction over packed rows.

    Args:
        cell: the step.
        x: [N, I], the rows of step 0, then of step 1, ...; N is the sum of ``batch_sizes``.
        batch_sizes: how many rows are active at each step, never growing (`PackedSequence`'s layout).
        states: initial value of each state, [B, H]; rows sorted by length, longest first.
        weights: of the layer and direction.
        reverse: each row from its last step to its first.
        tap: see `Tap`.

    Returns:
        y [N, H] in the layout of ``x``, and each state [B, H] after each row's last processed step.
    """
    gates = len(cell.gates)
    inputs: Sequence[torch.Tensor] = ()
    if len(batch_sizes):
        inputs = torch.nn.functional.linear(x, weights.ih, weights.bias_ih).split(list(batch_sizes))
    current = list(states)
    outputs: list[torch.Tensor] = [x] * len(batch_sizes)
    steps = range(len(batch_sizes))
    vec = cell.Vectors(*weights.vectors)
    for t in reversed(steps) if reverse else steps:
        rows = batch_sizes[t]
        active = [state[:rows] for state in current]
        inp = cell.Shares(*inputs[t].chunk(gates, -1))
        rec = cell.Shares(*torch.nn.functional.linear(active[0], weights.hh, weights.bias_hh).chunk(gates, -1))
        new = cell(inp, rec, cell.States(*active), vec)
        if tap is not None:
            new = tap(t, new)
        outputs[t] = new[0]
        whole = rows == current[0].shape[0]
        current = [
            value if whole else torch.cat([value, state[rows:]]) for value, state in zip(new, current, strict=True)
        ]
    if not outputs:  # every row has length 0: y is empty, and every parameter has a gradient, of zeros
        hidden = states[0].shape[1]
        recurrent = torch.nn.functional.linear(states[0][:0], weights.hh, weights.bias_hh)
        empty = torch.nn.functional.linear(x, weights.ih, weights.bias_ih) + recurrent
        outputs = [empty[:, :hidden] + sum(weights.vectors)]
    return torch.cat(outputs), tuple(current)
