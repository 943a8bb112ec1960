"""Layers on top of each other, in one or both directions: what a recurrent layer runs, apart from its module.

A function of tensors alone, so that the module and the operator of `nn.compiled` run the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from recollect.cells.cell import Cell
from recollect.engine import dispatch
from recollect.engine.layout import Layout
from recollect.engine.reference import PLAIN, Direction, Extras, Result, Weights
from recollect.nn.checks import rows_of
from recollect.nn.rows import lay_out


@dataclass(slots=True)
class Stack:
    """Which layers there are and what is done to them.

    Attributes:
        cell: the time step.
        num_layers, bidirectional, batch_first: as in `Recurrent`.
        bias, projected: which parameters a layer has.
        dropout, recurrent_dropout, zoneout: whether a call brings noise of this kind.
        all_states: whether a call returns every state of every step.
        checkpoint: as in `Recurrent`; how a call is computed, not what.
        bfloat16: whether kernels multiply in bfloat16; see `recollect.set_precision`.
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
    checkpoint: int | str | None = None
    bfloat16: bool = False

    def run(
        self,
        x: torch.Tensor | PackedSequence,
        lengths: torch.Tensor | Sequence[int] | None,
        resets: torch.Tensor | None,
        states: Sequence[torch.Tensor] | None,
        parameters: Sequence[torch.Tensor],
        noise: Sequence[torch.Tensor],
        run_layer: Callable[..., list[Result]] | None = None,
    ) -> tuple[list[Any], list[torch.Tensor]]:
        """Run all layers.

        Args:
            x: [T, B, I], [B, T, I] with ``batch_first``, or a PackedSequence.
            lengths: [B] valid steps, or None.
            resets: bool in the layout of ``x`` without features, [N] for packed rows, or None.
            states: initial value of each state, [layers * directions, B, its size]; None for zeros.
            parameters: of each layer and direction in turn, in the order of `Recurrent`'s names.
            noise: of the kinds that this stack has, in this order: for each layer but the first a dropout mask in
                the layout of ``x``; for each layer and direction a mask [B, F] of what W_hh multiplies; for each
                layer and direction and each state how much it keeps, in the layout of ``x`` or [its size].
            run_layer: runs one layer, after the one below, in place of `dispatch`.

        Returns:
            ``(outputs, final)``: y, followed by the last layer's other states where all are wanted, in the layout
            of ``x``; and the final states in the form of ``states``.
        """
        layout = lay_out(x, lengths, batch_first=self.batch_first)
        directions = 2 if self.bidirectional else 1
        count = self.num_layers * directions
        weights = self._weights(parameters)
        dropout, extras = self._additions(layout, resets, noise, count)
        initial = None if states is None else [layout.sort(state) for state in states]
        runs = [
            Direction(
                None if initial is None else [_one(state, place) for state in initial],
                weights[place],
                extras[place] if extras else PLAIN,
                place % directions > 0,
                label,
            )
            for place, label in enumerate(_labels(self.num_layers, self.bidirectional))
        ]
        data, run = rows_of(x), run_layer or dispatch.run
        if count == 1:  # most calls by far
            [(outputs, stacked)] = run(self.cell, data, layout, runs)
        else:
            found = None
            if not (self.bidirectional or dropout or run_layer):
                found = dispatch.run_layers(self.cell, data, layout, runs)
            if found is None:
                layers = [runs[first : first + directions] for first in range(0, count, directions)]
                found = self._one_by_one(data, layout, layers, dropout, run)
            outputs = [_joined(each, -1) for each in zip(*(outputs for outputs, _ in found[-directions:]), strict=True)]
            stacked = [_joined(each, 0) for each in zip(*(final for _, final in found), strict=True)]
        if isinstance(x, PackedSequence):
            outputs = [PackedSequence(each, *x[1:]) for each in outputs]
        return list(outputs), [layout.unsort(each) for each in stacked]

    def _one_by_one(
        self,
        data: torch.Tensor,
        layout: Layout,
        layers: Sequence[Sequence[Direction]],
        dropout: Sequence[torch.Tensor],
        run: Callable[..., list[Result]],
    ) -> list[Result]:
        """Run the layers one after the other; only the last ones' outputs are left."""
        found: list[Result] = []
        results = run(self.cell, data, layout, layers[0])
        for layer, directions in enumerate(layers[1:]):
            found += [((), final) for _, final in results]
            data = _joined([outputs[0] for outputs, _ in results], -1)
            if dropout:
                data = data * dropout[layer]
            results = run(self.cell, data, layout, directions)
        return [*found, *results]

    def _additions(
        self, layout: Layout, resets: torch.Tensor | None, noise: Sequence[torch.Tensor], count: int
    ) -> tuple[list[torch.Tensor], list[Extras]]:
        """The dropout masks between layers, and what is added to each layer and direction; empty where nothing is."""
        computed = self.checkpoint is not None or self.bfloat16  # in another way than usual
        if resets is None and not noise and not self.all_states and not computed:
            return [], []  # most calls by far

        given = iter(noise)
        dropout = [next(given) for _ in range(self.num_layers - 1)] if self.dropout else []
        feed_masks = [layout.sort(next(given)) for _ in range(count)] if self.recurrent_dropout else [None] * count
        keep = [[next(given) for _ in self.cell.states] if self.zoneout else () for _ in range(count)]
        last = count - (2 if self.bidirectional else 1)  # from here on it is the last layer
        all_states = [self.all_states and place >= last for place in range(count)]
        found = []
        for mask, kept, every in zip(feed_masks, keep, all_states, strict=True):
            plain = resets is None and mask is None and not kept and not every and not computed
            found.append(PLAIN if plain else Extras(resets, mask, kept, every, self.checkpoint, self.bfloat16))
        return dropout, found

    def _weights(self, parameters: Sequence[torch.Tensor]) -> list[Weights]:
        """The parameters of each layer and direction."""
        if len(parameters) == 4 and self.bias:  # one layer in one direction, of a cell without vectors
            ih, hh, bias_ih, bias_hh = parameters
            return [Weights(ih, hh, bias_ih, bias_hh)]
        found, given = [], iter(parameters)
        for _ in range(self.num_layers * (2 if self.bidirectional else 1)):
            ih, hh = next(given), next(given)
            biases = (next(given), next(given)) if self.bias else (None, None)
            hr = next(given) if self.projected else None
            found.append(Weights(ih, hh, *biases, hr, [next(given) for _ in self.cell.vectors]))
        return found


@lru_cache(maxsize=128)
def _labels(layers: int, bidirectional: bool) -> list[str]:
    """Of each layer and direction, as parameters are named."""
    return [f"l{layer}{way}" for layer in range(layers) for way in ("", "_reverse")[: 1 + bidirectional]]


def _one(stacked: torch.Tensor, place: int) -> torch.Tensor:
    """That of one layer and direction, [1, B, its size]."""
    return stacked if stacked.shape[0] == 1 else stacked[place : place + 1]


def _joined(parts: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)
