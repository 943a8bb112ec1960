"""A model's input as rows and steps, so that a single step of a single row can be replaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from recollect.diagnosis.runs.call import Call
from recollect.errors import InputError


class Sequences:
    """What stands where in an input.

    Args:
        x: [B, T, ...], [T, B, ...], [T, ...] for a single sequence, or a PackedSequence.
        calls: the recurrent layers that ran on it. B and T of the first that fits tell its axes, in that layer's
            layout where both fit.

    Attributes:
        x: as given.
        call: the layer that fits.
        lengths: [B] valid steps of each row.
        flat: [N, ...] all steps of all rows as they lie in memory.

    Raises:
        InputError: no layer fits.
    """

    def __init__(self, x: Tensor | PackedSequence, calls: Sequence[Call]) -> None:
        self.x = x
        if isinstance(x, PackedSequence):
            self.call = calls[0]
            self.flat, self._axes = x.data, ""
            counted = PackedSequence(torch.arange(len(x.data)), x.batch_sizes, *(_cpu(each) for each in x[2:]))
            table, lengths = pad_packed_sequence(counted, batch_first=True)
            self._table, self.lengths = table.numpy(), lengths.numpy()
            return
        self.call, self._axes = _fitting(x, calls)
        self.flat = x if self._axes == "T" else x.flatten(0, 1)
        grid = np.arange(len(self.flat)).reshape(x.shape[: len(self._axes)])
        self._table = {"T": grid[None], "BT": grid, "TB": grid.T}[self._axes]
        batch, steps = self._table.shape
        given = self.call.lengths
        self.lengths = np.full(batch, min(steps, self.call.steps)) if given is None else given.numpy()

    @property
    def steps(self) -> int:
        """T_max, the valid steps of the longest row."""
        return int(self.lengths.max(initial=0))

    def places(self, rows: NDArray[np.int64], lags: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Where in ``flat`` the steps are that lie so many steps before the last valid ones of their rows."""
        return self._table[rows, self.lengths[rows] - 1 - lags]

    @property
    def valid(self) -> NDArray[np.int64]:
        """Where in ``flat`` the valid steps are, row after row."""
        return self._table[np.arange(self._table.shape[1]) < self.lengths[:, None]]

    def by_lag(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """A number for each of ``flat`` as [B, T_max] by lag; NaN where a row has no such lag."""
        found = np.full((len(self.lengths), self.steps), np.nan)
        rows, lags = np.nonzero(np.arange(self.steps) < self.lengths[:, None])
        found[rows, lags] = values[self.places(rows, lags)]
        return found

    def rebuilt(self, flat: Tensor) -> Tensor | PackedSequence:
        """An input of the same form from [copies, N, ...]: the batch so many times (once where it is packed)."""
        if isinstance(self.x, PackedSequence):
            return PackedSequence(flat[0], *self.x[1:])
        if self._axes == "T":
            return flat[0]
        whole = flat.unflatten(1, self.x.shape[:2])
        return whole.flatten(0, 1) if self._axes == "BT" else whole.transpose(0, 1).flatten(1, 2)


def _fitting(x: Tensor, calls: Sequence[Call]) -> tuple[Call, str]:
    """The first layer whose rows and steps x has, and which of x's axes they are."""
    for call in calls:
        if call.unbatched:
            if x.dim() and x.shape[0] == call.steps:
                return call, "T"
            continue
        for axes in ("BT", "TB") if call.layer.batch_first else ("TB", "BT"):
            if x.dim() > 1 and x.shape[axes.index("B")] == call.batch:
                steps = x.shape[axes.index("T")]
                # A model that packs its input lets go of the steps beyond the longest row.
                if steps == call.steps or (isinstance(call.x, PackedSequence) and steps > call.steps):
                    return call, axes
    raise InputError(
        "it cannot be told which axes of x are rows and steps",
        given=f"shape {tuple(x.shape)}, for recurrent layers that ran on "
        + ", ".join(f"B = {call.batch}, T = {call.steps}" for call in calls),
        expected="[B, T, ...] or [T, B, ...] with the B and T of a recurrent layer",
        remedy="pass the part of the model from where it has one step for each of the layer's",
    )


def _cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()
