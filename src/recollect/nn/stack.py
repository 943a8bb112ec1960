"""Layers on top of each other, in one or both directions: what a recurrent layer runs, apart from its module.

A function of tensors alone, so that the module and the operator of `nn.compiled` run the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from recollect.cells.cell import Cell
from recollect.engine import dispatch
from recollect.engine.reference import PLAIN, Extras, Result, Weights
from recollect.nn.checks import rows_of
from recollect.nn.rows import lay_out


@dataclass(frozen=True, slots=True)
class Stack:
    """Which layers there are and what is done to them.

    Attributes:
        cell: the time step.
        num_layers, bidirectional, batch_first: as in `Recurrent`.
        bias, projected: which parameters a layer has.
        dropout, recurrent_dropout, zoneout: whether a call brings noise of this kind.
        all_states: whether a call returns every state of every step.
    """

    cell: Cell
    num_layers: int
    bidirectional: bool
    batch_first: bool
    bias: bool
    projected: bool
    dropout: bool
    recurrent_dropout: bool
    zoneout: bool
    all_states: bool

    def run(
        self,
        x: torch.Tensor | PackedSequence,
        lengths: torch.Tensor | Sequence[int] | None,
        resets: torch.Tensor | None,
        states: Sequence[torch.Tensor],
        parameters: Sequence[torch.Tensor],
        noise: Sequence[torch.Tensor],
        run_layer: Callable[..., Result] | None = None,
    ) -> tuple[list[Any], list[torch.Tensor]]:
        """Run all layers.

        Args:
            x: [T, B, I], [B, T, I] with ``batch_first``, or a PackedSequence.
            lengths: [B] valid steps, or None.
            resets: bool in the layout of ``x`` without features, [N] for packed rows, or None.
            states: initial value of each state, [layers * directions, B, its size].
            parameters: of each layer and direction in turn, in the order of `Recurrent`'s names.
            noise: of the kinds that this stack has, in this order: for each layer but the first a dropout mask
                [T, B, features]; for each layer and direction a mask [B, F] of what W_hh multiplies; for each
                layer and direction and each state how much it keeps, [T, B, its size] or [its size]. Of a
                PackedSequence [N, ...] in place of [T, B, ...].
            run_layer: runs one layer in one direction in place of `dispatch.run`.

        Returns:
            ``(outputs, final)``: y, followed by the last layer's other states where all are wanted, in the layout
            of ``x``; and the final states in the form of ``states``.
        """
        rows = lay_out(x, lengths, batch_first=self.batch_first)
        directions = 2 if self.bidirectional else 1
        count = self.num_layers * directions

        def per_step(mask: torch.Tensor) -> torch.Tensor:
            return mask if mask.dim() == 1 else rows.take(mask, batch_first=False)

        given = iter(noise)
        dropout = [per_step(next(given)) for _ in range(self.num_layers - 1)] if self.dropout else []
        feed_masks = [rows.sort(next(given)) for _ in range(count)] if self.recurrent_dropout else []
        keep = [[per_step(next(given)) for _ in states] for _ in range(count)] if self.zoneout else []
        flags = None if resets is None else rows.take(resets)
        weights = self._weights(parameters)
        initial = [rows.sort(state) for state in states]

        def extras(place: int) -> Extras:
            all_states = self.all_states and place >= count - directions
            if flags is None and not feed_masks and not keep and not all_states:
                return PLAIN
            feed_mask = feed_masks[place] if feed_masks else None
            return Extras(flags, feed_mask, keep[place] if keep else (), all_states)

        data = rows.take(rows_of(x))
        run = run_layer or dispatch.run
        results: list[tuple[torch.Tensor, ...]] = []
        finals: list[tuple[torch.Tensor, ...]] = []
        for layer in range(self.num_layers):
            if layer and dropout:
                data = data * dropout[layer - 1]
            results = []
            for direction in range(directions):
                place = layer * directions + direction
                outputs, final = run(
                    self.cell,
                    data,
                    rows.batch_sizes,
                    [state[place] for state in initial],
                    weights[place],
                    extras(place),
                    reverse=direction == 1,
                    label=f"l{layer}_reverse" if direction else f"l{layer}",
                )
                results.append(outputs)
                finals.append(final)
            data = _joined([outputs[0] for outputs in results])
        others = [_joined(list(each)) for each in zip(*(outputs[1:] for outputs in results), strict=True)]
        stacked = [torch.stack(each) if count > 1 else each[0].unsqueeze(0) for each in zip(*finals, strict=True)]
        return [rows.restore(each) for each in (data, *others)], [rows.unsort(each) for each in stacked]

    def _weights(self, parameters: Sequence[torch.Tensor]) -> list[Weights]:
        """The parameters of each layer and direction."""
        found, given = [], iter(parameters)
        for _ in range(self.num_layers * (2 if self.bidirectional else 1)):
            ih, hh = next(given), next(given)
            biases = (next(given), next(given)) if self.bias else (None, None)
            hr = next(given) if self.projected else None
            found.append(Weights(ih, hh, *biases, hr, [next(given) for _ in self.cell.vectors]))
        return found


def _joined(directions: list[torch.Tensor]) -> torch.Tensor:
    return directions[0] if len(directions) == 1 else torch.cat(directions, 1)
