"""What a probe writes down of one step of training, from what its layers have left (`engine.watched`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recollect.diagnosis.activity import saturated
from recollect.diagnosis.flow import Curve, row_norms
from recollect.engine.watched import Watched
from recollect.graph.gates import Kind, activations

_MOST_ROWS = 8  # whose gates are looked at; all of them would take longer than the rest of a probe

# Squares between these are those of norms to all digits that float32 has.
_SAFE_SQUARES = (1e-30, 1e30)


@dataclass(frozen=True, eq=False)
class ProbedGate:
    """The activation of one gate, in at most 8 of the rows, which stand for all of them.

    Attributes:
        kind: of its activation: ``"sigmoid"`` (0 shut, 1 open), ``"tanh"``, ``"relu"`` or ``"other"``.
        openness: [T] its mean over rows and units at each step in time; of the absolute value where it is a tanh.
        low, high: the share of all values that are saturated at the lower and the upper end: a sigmoid below 0.01 or
            above 0.99, a tanh beyond 0.98, a ReLU at 0; 0 where that has no meaning.
    """

    kind: Kind
    openness: Curve
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class ProbedLayer:
    """One level of a recurrent layer in one direction.

    T is the length of the longest row that the layer was told of; where it was not told, padding counts as steps.

    Attributes:
        grad_norm_by_lag: for each state [T]: at lag k the root mean square, over the rows longer than k, of the norm
            of dL/ds k steps before the row's last, which is the one that is processed last. L is what the training
            loop calls ``backward`` on, before clipping; of a mean over rows it is 1/B of what `diagnose` shows.
        state_norms: for each state [T]: the root mean square over rows of its norm as it leaves each step in time, or
            where a row is reset then, of what it is reset to.
        gates: each gate that has an activation.
        calls: how often the layer ran in this step; what is shown is the last time.
    """

    grad_norm_by_lag: dict[str, Curve]
    state_norms: dict[str, Curve]
    gates: dict[str, ProbedGate]
    calls: int


@dataclass(frozen=True, eq=False)
class ProbedStep:
    """One step of training that was probed.

    Attributes:
        index: which of the steps that the probe was told of; the place in its ``losses``, ``norms`` and ``scales``.
        epoch, step: the epoch, and the step in it.
        layers: by name of module, level and direction, such as ``"rnn.l1_reverse"``, in the order in which they ran.
            A layer that no gradient reached is left out, and so is one under ``torch.compile`` or torch.func.
        updates: for each trained parameter, the norm of what the step changed over the norm of what it was.
        gradient_norms: the norm of the gradient of each that has one, as the optimiser got it (after clipping).
    """

    index: int
    epoch: int
    step: int
    layers: dict[str, ProbedLayer]
    updates: dict[str, float]
    gradient_norms: dict[str, float]


def probed_layer(watched: Watched, calls: int) -> ProbedLayer:
    """Look at one layer in one direction, whose backward pass has run."""
    assert watched.gradients is not None
    cell, rows = watched.cell, _rows(tuple(watched.layout.sizes), watched.layout.batch, watched.reverse)
    gradients, norms = {}, {}
    each = zip(cell.states, watched.gradients, watched.before, watched.final, strict=True)
    for state, gradient, before, final in each:
        gradients[state] = _mean_square_root(rows.lags, _norms(gradient))
        after = np.concatenate([_norms(before), _norms(final)])[rows.after]
        norms[state] = _mean_square_root(rows.times, after)
    gates, kinds = {}, activations(cell.graph, cell.gates)
    for gate, values in watched.gates(torch.from_numpy(rows.sample).to(watched.before[0].device)).items():
        kind, found = kinds[gate].kind, _array(values)
        low, high = saturated(kind, found)
        size = np.abs(found) if kind == "tanh" else found
        openness = _mean(rows.times[rows.sample], size.mean(1))
        gates[gate] = ProbedGate(kind, openness, *(np.count_nonzero(each) / each.size for each in (low, high)))
    return ProbedLayer(gradients, norms, gates, calls)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Packed rows [N] by time and by lag.

    Attributes:
        times: the step in time of each.
        lags: how many steps of its sequence are processed after it.
        after: where its states are found as the next step of its sequence finds them, or else (N and more) among the
            final ones.
        sample: [n] those of a few sequences.
    """

    times: NDArray[np.int64]
    lags: NDArray[np.int64]
    after: NDArray[np.int64]
    sample: NDArray[np.int64]


@lru_cache(maxsize=8)
def _rows(sizes: Sequence[int], batch: int, reverse: bool) -> _Rows:
    counts = np.array(sizes)
    offsets = np.cumsum(counts) - counts
    sequences = np.arange(batch)
    active = sequences < counts[:, None]  # [T, B]
    times, which = np.nonzero(active)
    lengths = active.sum(0)
    lags = times if reverse else lengths[which] - 1 - times
    onward = np.clip(times + (-1 if reverse else 1), 0, len(counts) - 1)
    after = np.where(lags > 0, offsets[onward] + which, len(times) + which)
    chosen = np.unique(np.linspace(0, counts[0] - 1, min(_MOST_ROWS, counts[0])).round().astype(np.int64))
    return _Rows(times, lags, after, np.flatnonzero(np.isin(which, chosen)))


def _array(values: Tensor) -> NDArray[Any]:
    return (values if values.dtype in (torch.float32, torch.float64) else values.float()).cpu().numpy()


def _norms(rows: Tensor) -> NDArray[np.float64]:
    """As `row_norms`, but faster in the common case."""
    if rows.dtype != torch.float32 or rows.device.type != "cpu":
        return row_norms(rows)
    values = rows.numpy()
    squares = np.einsum("ij,ij->i", values, values)
    norms = np.sqrt(squares, dtype=np.float64)
    unsafe = np.flatnonzero(~((squares > _SAFE_SQUARES[0]) & (squares < _SAFE_SQUARES[1])))
    if len(unsafe):
        exact = values[unsafe].astype(np.float64)
        norms[unsafe] = np.sqrt(np.einsum("ij,ij->i", exact, exact))
    return norms


def _mean(places: NDArray[np.int64], values: NDArray[np.float64]) -> Curve:
    """The mean of the values at each place."""
    return np.bincount(places, values) / np.bincount(places)


def _mean_square_root(places: NDArray[np.int64], norms: NDArray[np.float64]) -> Curve:
    usable = norms[np.isfinite(norms) & (norms > 0)]
    scale = usable.max(initial=0.0) or 1.0
    return scale * np.sqrt(_mean(places, (norms / scale) ** 2))
