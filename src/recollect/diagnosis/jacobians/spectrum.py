"""How much of a change of the state is left after k steps, in every direction: singular values of dh_T/dh_{T-k}."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recollect.diagnosis.flow import Curve
from recollect.diagnosis.jacobians.steps import StepJacobians, chosen, state_sizes, steps_at_once
from recollect.diagnosis.lags import checked, log_spaced
from recollect.diagnosis.progress import progress_bar
from recollect.diagnosis.report import sparkline
from recollect.diagnosis.runs.unrolled import Unrolled

_LAGS, _ROWS = 24, 8
_KEPT = 0.01


@dataclass(frozen=True, eq=False)
class JacobianSpectrum:
    """The singular values of dh_T/dh_{T-k}, where T is each row's last step and k the lag.

    Attributes:
        layer: which it is, such as ``"rnn.l0"``.
        lags: [K] in steps.
        singular_values: [K, F] the geometric mean over rows, largest first; 0 where it leaves float64.
        spread: [K, F] the standard deviation over rows of their natural logarithms; 0 for a single row.
        rows: [R] the rows that were looked at, the longest first.
        log_singular_values: [R, K, F] their natural logarithms, which never leave float64; -inf for 0, NaN at lags
            that a row is too short for.
    """

    layer: str
    lags: NDArray[np.int64]
    singular_values: Curve
    spread: Curve
    rows: NDArray[np.int64]
    log_singular_values: NDArray[np.float64]

    @property
    def growth_per_step(self) -> float:
        """The factor by which the largest singular value changes per step, from the first of the lags to the last.

        With a single lag k it is that value's k-th root; 0.0 where the last is 0.
        """
        first, last = (self._logs_of(place)[:, 0].mean() for place in (0, -1))
        if last == -math.inf:
            return 0.0
        if len(self.lags) == 1:
            return math.exp(last / self.lags[0])
        return math.exp((last - first) / (self.lags[-1] - self.lags[0]))

    def _logs_of(self, place: int) -> NDArray[np.float64]:
        """The logarithms at one lag, of the rows that are long enough."""
        logs = self.log_singular_values[:, place]
        return logs[~np.isnan(logs[:, 0])]

    def __str__(self) -> str:
        values, last = self.singular_values, int(self.lags[-1])
        lines = [f"Singular values of dh_T/dh_(T-k) of {self.layer}, k = {self.lags[0]} to {last}"]
        for name, curve in {"largest": values[:, 0], "median": np.median(values, axis=1)}.items():
            lines.append(f"  {name:<8} {sparkline(curve)}  {curve[0]:.3g} to {curve[-1]:.3g}")
        kept = (values[-1] >= _KEPT * values[-1, 0]).sum() if values[-1, 0] else 0
        return "\n".join(
            [
                *lines,
                f"  the largest grows by {self.growth_per_step:.4g} per step",
                f"  at k = {last} {kept} of {values.shape[1]} directions have {_KEPT:.0%} or more of the largest",
            ]
        )


def jacobian_spectrum(
    model: nn.Module,
    x: Tensor | PackedSequence | tuple[Any, ...],
    *,
    lengths: Any = None,
    layer: str | None = None,
    lags: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    progress: bool = True,
) -> JacobianSpectrum:
    """Measure what k steps do to a small change of the state, in every direction.

    dh_T/dh_{T-k} is the product of k Jacobians of single steps. A change of h_{T-k} along a right singular vector
    comes out at h_T as many times larger as the singular value says: gradients explode where the largest grows with k,
    and the past is forgotten where all of them vanish. A cell with more states than h carries the change in all of
    them, and the Jacobians are those of the joint state; what is shown is the block from h to h, that is, the other
    states of step T-k are held as they were. Lag counts in the layer's own order: in a reverse direction T is the
    first step of the row.

    It runs on a float64 copy in eval mode, as `diagnose` does, and leaves the model alone. The Jacobians are exact, and
    the product is rescaled step by step, so that it may have any size. Singular values are accurate relative to the
    largest of their lag: those below about 1e-15 times it are rounding errors, however small the true ones are.

    Args:
        model, x, lengths, layer: as in `diagnose`.
        lags: k, from 1 to T - 1; by default up to 24 of them, evenly spaced on a log scale.
        rows: which rows of the batch; by default the 8 longest.
        progress: show a bar if it takes longer than a second and standard error is a terminal.

    Raises:
        InputError: the model cannot be copied or run, or has no recurrent layer; there is no such layer, row or lag;
            a row has fewer than two steps; a state or a derivative is not finite.

    Example:
        >>> print(jacobian_spectrum(model, x))
    """
    unrolled, picked, within = chosen(model, x, lengths, layer, rows, _ROWS)
    last = int(unrolled.lengths[within[0]]) - 1
    at = log_spaced(1, last, _LAGS) if lags is None else checked(lags, 1, last)
    logs = _log_singular_values(unrolled, within, at, progress)
    values, spread = np.zeros(logs.shape[1:]), np.zeros(logs.shape[1:])
    with np.errstate(invalid="ignore", over="ignore"):  # -inf less itself, where a value is 0 in all rows
        for place, lag in enumerate(at):
            usable = logs[unrolled.lengths[within] > lag, place]
            values[place], spread[place] = np.exp(usable.mean(0)), np.nan_to_num(usable.std(0))
    return JacobianSpectrum(unrolled.name, at, values, spread, picked, logs)


@torch.no_grad()
def _log_singular_values(
    unrolled: Unrolled, rows: NDArray[np.int64], lags: NDArray[np.int64], progress: bool
) -> NDArray[np.float64]:
    """[R, K, F] of rows that come the longest first."""
    lengths, last, sizes = unrolled.lengths[rows], int(lags[-1]), state_sizes(unrolled)
    found = np.full((len(rows), len(lags), sizes[0]), np.nan)
    # w = dh_T/d(states of step T-k), from the left: only F rows of the joint product are ever formed.
    start = unrolled.states[0].new_zeros(sizes[0], sum(sizes))
    start[:, : sizes[0]].fill_diagonal_(1.0)
    products = start.expand(len(rows), *start.shape)
    scales = products.new_zeros(len(rows))  # the logarithm of what was divided out
    each = steps_at_once(unrolled, len(rows))
    with progress_bar("singular values", last, progress) as advance:
        for first in range(0, last, each):
            span = np.arange(first, min(first + each, last))
            places = unrolled.places(rows, np.minimum(span[:, None], lengths - 1))
            jacobians = StepJacobians(unrolled, places)
            for step, lag in enumerate(span):
                active = int((lengths > lag + 1).sum())  # of which a step left the state at lag + 1
                products = jacobians.vjp(step, products[:active])
                largest = products.abs().amax((1, 2))
                largest = torch.where(largest > 0, largest, 1.0)
                products, scales = products / largest[:, None, None], scales[:active] + largest.log()
                if lag + 1 in lags:
                    values = torch.linalg.svdvals(products[..., : sizes[0]])
                    logs = values.log() + scales[:, None]
                    found[:active, np.searchsorted(lags, lag + 1)] = logs.cpu().numpy()
                advance(1)
    return found
