"""Lyapunov exponents: how fast small changes of the state grow or fade over a long run, in every direction."""

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
from recollect.diagnosis.progress import progress_bar
from recollect.diagnosis.runs.unrolled import Unrolled
from recollect.errors import InputError

_ROWS = 4


@dataclass(frozen=True, eq=False)
class LyapunovSpectrum:
    """The Lyapunov exponents of a layer's joint state (h, and the cell's other states), driven by its input.

    A change of the state along direction i has grown by about e^(exponents[i] * k) after k steps. Above 0 for the first
    of them the network is chaotic: the past is overwritten by small errors. Below 0 it forgets its state within about
    1 / |exponent| steps; near 0 it remembers.

    Attributes:
        layer: which it is, such as ``"rnn.l0"``.
        exponents: [count] in nats per step, the mean over rows, falling; -inf where a direction vanishes at once.
        spread: [count] their standard deviation over rows; 0 for a single row.
        drift: [count] of the second half of the steps, less that of the first: far from 0, the run is too short.
        by_row: [R, count] the exponents of each row, in the order of ``exponents``.
        rows: [R] the rows that were looked at, the longest first.
        steps: how many were measured in the longest row, after ``warmup``.
        warmup: steps of each row that went before, for the states and directions to settle.
        size: D, how many exponents there are in all: F + H for each further state.
    """

    layer: str
    exponents: Curve
    spread: Curve
    drift: Curve
    by_row: NDArray[np.float64]
    rows: NDArray[np.int64]
    steps: int
    warmup: int
    size: int

    @property
    def sum(self) -> float:
        """Of all exponents that were asked for; of all D it is the mean of log |det J|, how volumes shrink."""
        return float(self.exponents.sum())

    @property
    def kaplan_yorke_dimension(self) -> float:
        """How many dimensions the states fill, by the conjecture of Kaplan and Yorke.

        With S_j the sum of the first j exponents and j the last with S_j >= 0, it is j + S_j / |exponent j + 1|: 0
        where the first is negative, D where S_D >= 0, and NaN where more exponents than ``count`` would be needed.
        """
        sums = np.cumsum(self.exponents)
        fitting = int((sums >= 0).sum())  # sums of falling numbers rise, then fall: once below 0 they stay there
        if fitting == 0:
            return 0.0
        if fitting == len(self.exponents):
            return float(self.size) if fitting == self.size else math.nan
        return fitting + float(sums[fitting - 1] / abs(self.exponents[fitting]))

    def __str__(self) -> str:
        first, last = self.exponents[0], self.exponents[-1]
        if first > 0:
            meaning = "small changes of the state grow"
        else:
            memory = "at once" if first == -math.inf else f"to 1/e in {1 / abs(first):.3g} steps" if first else "never"
            meaning = f"changes of the state fade {memory} in the direction that lasts longest"
        return "\n".join(
            [
                f"Lyapunov exponents of {self.layer}, {self.steps} steps, {len(self.rows)} row(s), in nats per step",
                f"  largest   {first:+.4f}, ± {self.spread[0]:.2g} over rows, drift {self.drift[0]:+.2g}: {meaning}",
                f"  smallest  {last:+.4f} of {len(self.exponents)} (of {self.size})",
            ]
        )


def lyapunov_spectrum(
    model: nn.Module,
    x: Tensor | PackedSequence | tuple[Any, ...],
    *,
    lengths: Any = None,
    layer: str | None = None,
    count: int | None = None,
    warmup: int | None = None,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> LyapunovSpectrum:
    """Measure a layer's Lyapunov exponents along the run that ``x`` drives.

    An orthonormal set of directions of the joint state is carried along with the exact Jacobian of every step, and made
    orthonormal again after each by a QR decomposition; an exponent is the mean of log R_ii. For a network that runs
    freely pass an ``x`` of zeros; the exponents are a limit of long runs, and ``drift`` and ``spread`` say how far the
    run at hand is from it.

    It runs on a float64 copy in eval mode, as `diagnose` does, and leaves the model alone. A direction that a step
    shrinks below what float64 tells from rounding errors, relative to the one it shrinks least (about 1e-16 D), counts
    as gone: its exponent is -inf. So it is where units of a ReLU are dead, and by design in the sLSTM, where the
    states c, n and m say the same thing in many ways.

    Args:
        model, x, lengths, layer: as in `diagnose`. Memory grows with the rows of ``x`` and its steps.
        count: how many exponents, the largest; by default all D.
        warmup: steps of each row that are not counted; by default a tenth of the shortest row.
        rows: which rows of the batch; by default the 4 longest.
        seed: draws the first directions.
        progress: show a bar if it takes longer than a second and standard error is a terminal.

    Raises:
        InputError: the model cannot be copied or run, or has no recurrent layer; there is no such layer or row; a row
            has fewer than two steps, or fewer than two after ``warmup``; ``count`` is not between 1 and D; a state or
            a derivative is not finite.

    Example:
        >>> print(lyapunov_spectrum(model, torch.zeros(5000, 1, 8), count=3))

    Source: G. Benettin et al., "Lyapunov characteristic exponents for smooth dynamical systems", Meccanica 15 (1980);
    for recurrent networks R. Vogt et al., "On Lyapunov exponents for RNNs", Frontiers in Applied Mathematics and
    Statistics 8 (2022), and R. Engelken, F. Wolf, L. F. Abbott, "Lyapunov spectra of chaotic recurrent neural
    networks", Physical Review Research 5 (2023).
    """
    unrolled, picked, within = chosen(model, x, lengths, layer, rows, _ROWS)
    steps, size = unrolled.lengths[within], sum(state_sizes(unrolled))
    count = size if count is None else _whole("count", count, 1, size, "D, the numbers in the joint state of a row")
    shortest = int(steps[-1])
    before = shortest // 10 if warmup is None else _whole(
        "warmup", warmup, 0, shortest - 2, f"two steps less than the shortest of the rows, {shortest}"
    )  # fmt: skip
    logs, counted = _log_stretching(unrolled, within, count, before, seed, progress)
    by_row = logs.sum(0) / counted.sum(0)[:, None]
    with np.errstate(invalid="ignore"):  # -inf less itself
        drift = np.nan_to_num(
            (logs[1] / counted[1][:, None] - logs[0] / counted[0][:, None]).mean(0), posinf=np.inf, neginf=-np.inf
        )
        spread = np.nan_to_num(by_row.std(0))
    exponents = by_row.mean(0)
    order = np.argsort(-exponents, kind="stable")
    return LyapunovSpectrum(
        unrolled.name, exponents[order], spread[order], drift[order], by_row[:, order],
        picked, int(steps[0]) - before, before, size,
    )  # fmt: skip


@torch.no_grad()
def _log_stretching(
    unrolled: Unrolled, rows: NDArray[np.int64], count: int, warmup: int, seed: int, progress: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums of log R_ii [2, R, count] over the first and the second half of the counted steps, and how many [2, R]."""
    lengths, D = unrolled.lengths[rows], sum(state_sizes(unrolled))
    last, middle = int(lengths[0]), warmup + (lengths - warmup) // 2
    like = unrolled.states[0]
    drawn = torch.randn(D, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like)
    directions = torch.linalg.qr(drawn).Q.mT.expand(len(rows), count, D)
    sums = like.new_zeros(2, len(rows), count)
    least = D * torch.finfo(like.dtype).eps
    each = steps_at_once(unrolled, len(rows))
    with progress_bar("Lyapunov exponents", last, progress) as advance:
        for first in range(0, last, each):
            span = np.arange(first, min(first + each, last))
            lags = np.maximum(lengths - 1 - span[:, None], 0)
            jacobians = StepJacobians(unrolled, unrolled.places(rows, lags))
            for step, position in enumerate(span):
                active = int((lengths > position).sum())
                carried = jacobians.jvp(step, directions[:active])
                # A step may shrink everything; the scale goes into the logarithm.
                scale = carried.abs().amax((1, 2), keepdim=True)
                Q, R = torch.linalg.qr((carried / torch.where(scale > 0, scale, 1.0)).mT)
                directions = Q.mT
                if position >= warmup:
                    stretched = R.diagonal(dim1=1, dim2=2).abs()
                    gone = stretched <= least * stretched.amax(1, keepdim=True)
                    logs = torch.where(gone, -math.inf, stretched.log() + scale[:, :, 0].log())
                    late = torch.from_numpy(position >= middle[:active]).to(like.device)
                    sums[0, :active] += torch.where(late[:, None], 0.0, logs)
                    sums[1, :active] += torch.where(late[:, None], logs, 0.0)
                advance(1)
    return sums.cpu().numpy(), np.stack([middle - warmup, lengths - middle])


def _whole(name: str, value: int, low: int, high: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(
            f"{name} is out of range", given=value, expected=f"a whole number from {low} to {high}: {what}"
        )
    return value
