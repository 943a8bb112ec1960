"""How far back an input still changes what a model says: by its gradient, and by replacing inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recollect.diagnosis.flow import GONE, Curve
from recollect.diagnosis.lags import checked, log_spaced
from recollect.diagnosis.memory import interventions
from recollect.diagnosis.memory.sequences import Sequences
from recollect.diagnosis.progress import progress_bar
from recollect.diagnosis.report import sparkline
from recollect.diagnosis.runs.twin import Twin, apart_from_the_caller
from recollect.errors import InputError

# Beyond so many steps only some lags are looked at.
_ALL_LAGS, _LAGS = 64, 40
# Replacements at each lag, of all rows together, unless the caller asks for another number.
_SAMPLES = 128
# Of a row's length: what reaches less far back is short-term.
_SHORT = 0.25


@dataclass(frozen=True, eq=False)
class Reach:
    """What the answer owes to the input at each lag, measured in one of two ways.

    Attributes:
        lags: [K] which were measured.
        curve: [K] the root mean square over the rows longer than the lag.
        horizon: 1 + the largest lag at which the curve is at least ``threshold`` times its highest value; 0 if no input
            matters. Where not all lags are measured, the true horizon lies below the next one.
        censored: that lag is the last one measured, so that the true horizon may be longer.
        horizons: [B] the same of each row's own curve; 0 for a row without steps.
        censored_rows: [B] which of them are censored.
        quartiles: of ``horizons`` over the rows that have steps: a quarter, half and three quarters of them are at most
            as long.
    """

    lags: NDArray[np.int64]
    curve: Curve
    horizon: int
    censored: bool
    horizons: NDArray[np.int64]
    censored_rows: NDArray[np.bool_]
    quartiles: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class MemoryHorizon:
    """How many steps back an input still changes the answer.

    Attributes:
        by_intervention: how far the answer moves when an input is replaced by another one that occurs.
        by_gradient: the norm of d(answer)/d(input); at every lag. None where no gradient reaches an input.
        steps: T_max, the valid steps of the longest row.
        threshold: what share of the largest effect still counts.
        notes: what to bear in mind.
    """

    by_intervention: Reach
    by_gradient: Reach | None
    steps: int
    threshold: float
    notes: list[str]

    @property
    def memory_horizon(self) -> int:
        """In steps, by intervention."""
        return self.by_intervention.horizon

    @property
    def gradient_horizon(self) -> int | None:
        """In steps, by the gradient."""
        return None if self.by_gradient is None else self.by_gradient.horizon

    def __str__(self) -> str:
        return "\n".join(
            [
                f"Memory over {self.steps} steps; an effect counts from {_percent(self.threshold)} of the largest",
                *_lines("replaced inputs", self.by_intervention, self.by_intervention.lags),
                *(_lines("gradient", self.by_gradient, self.by_intervention.lags) if self.by_gradient else []),
                self.answer,
                *(f"note: {note}" for note in self.notes),
            ]
        )

    @property
    def answer(self) -> str:
        """Whether the memory is short-term, in a sentence."""
        reach, share = self.by_intervention, _percent(self.threshold)
        if not reach.horizon:
            return "Is its memory short-term? It has none: no input that was replaced changes what it says."
        if reach.censored:
            return (
                f"Is its memory short-term? No, not for these data: an input {reach.lags[-1]} steps back, the last "
                f"that was replaced, still has {share} of the largest effect or more."
            )
        short = "Yes" if reach.horizon < _SHORT * self.steps else "No"
        return (
            f"Is its memory short-term? {short}, for this model and these data: of {self.steps} steps, inputs of the "
            f"last {reach.horizon} have {share} of the largest effect or more when they are replaced."
        )


def memory_horizon(
    model: nn.Module,
    x: Tensor | PackedSequence | tuple[Any, ...],
    *,
    lengths: Any = None,
    lags: Sequence[int] | None = None,
    samples: int | None = None,
    threshold: float = GONE,
    seed: int = 0,
    progress: bool = True,
) -> MemoryHorizon:
    """Measure how far back an input still changes what a model says in the end.

    What it says is h_n of the top level for a bare layer (its directions side by side), and else the first tensor that
    the model returns, cut to each row's last valid step if it has the time axis, as in `diagnose`. The input at lag k
    is that of the step k before the row's last valid one. Two curves tell how the answer depends on it:

    - by intervention: it is replaced by another input, drawn from all valid steps of all rows (a value that really
      occurs, and another one), and the Euclidean norm of the change of the answer is taken. This is what the model
      remembers.
    - by gradient: the Frobenius norm of d(answer)/d(input at lag k). This is what it can learn from. For tokens, or
      wherever no gradient passes the model's own input, it is that of the first recurrent layer's input.

    Each curve's horizon is 1 + the largest lag with at least ``threshold`` times its highest value. (For a curve that
    falls, that is its value at lag 0, as in ``Diagnosis.gradient_horizon``; but a model may ignore the last inputs, and
    beside an effect of almost nothing every other would count.) A change of less than about 1e-15 of the answer is
    rounding.

    It runs on a float64 copy in eval mode, as `diagnose` does, and leaves the model alone.

    Args:
        model, x, lengths: as in `diagnose`. Of a tuple, the first tensor is the input.
        lags: at which to replace inputs; by default all up to 64 steps, and beyond that about 40, evenly spaced on a
            log scale.
        samples: replacements for each row and lag; by default as many as make 128 with all rows.
        threshold: what share of the largest effect still counts.
        seed: draws the replacements.
        progress: show a bar if it takes longer than a second and standard error is a terminal.

    Raises:
        InputError: the model cannot be copied or run, has no recurrent layer, or does not repeat its answer; no
            recurrent layer has x's rows and steps; the output has no rows, no floating-point numbers or is not finite;
            all inputs are the same; or an argument is out of range.

    Example:
        >>> print(memory_horizon(model, x))
    """
    _check(samples, threshold)
    with apart_from_the_caller(model):
        twin = Twin(model, x, lengths)
        with torch.no_grad():
            said = interventions.answer(twin)
            sequences = Sequences(twin.x, twin.calls)
            again = interventions.answer(twin)
        _check_answer(said, again, sequences)
        last = sequences.steps - 1
        everything = np.arange(last + 1)
        if lags is not None:
            at = checked(lags, 0, last)
        else:
            at = everything if last < _ALL_LAGS else log_spaced(0, last, _LAGS)
        samples = samples or -(-_SAMPLES // int((sequences.lengths > 0).sum()))
        work = samples * len(at) + min(said.shape[1], interventions.PROBES)
        with progress_bar("memory", work, progress) as advance:
            norms, note = interventions.gradient_norms(twin, sequences, seed, advance)
            with torch.no_grad():
                moved = interventions.changes(twin, sequences, said, at, samples, seed, advance)
    both_ways = [call.path or "the layer" for call in twin.calls if call.layer.bidirectional]
    notes = [note] if note else []
    notes += [
        f"{each} reads the sequence from its end too, so a lag is no number of steps to remember" for each in both_ways
    ]
    return MemoryHorizon(
        by_intervention=_reach(at, _root_mean_square(moved), threshold, sequences.lengths),
        by_gradient=None if norms is None else _reach(everything, norms, threshold, sequences.lengths),
        steps=last + 1,
        threshold=threshold,
        notes=notes,
    )


def _reach(lags: NDArray[np.int64], by_row: NDArray[np.float64], threshold: float, lengths: NDArray[np.int64]) -> Reach:
    """Curve and horizons from the effects [B, K], NaN where a row has no such lag."""
    curve = np.array([_root_mean_square(values[lengths > lag]) for lag, values in zip(lags, by_row.T, strict=True)])
    horizon, censored = _horizon(lags, curve, threshold)
    each = [
        _horizon(lags[lags < length], row[lags < length], threshold)
        for row, length in zip(by_row, lengths, strict=True)
    ]
    horizons = np.array([own for own, _ in each])
    quarter, half, most = np.quantile(horizons[lengths > 0], [0.25, 0.5, 0.75]).tolist()
    return Reach(
        lags, curve, horizon, censored, horizons, np.array([ended for _, ended in each]), (quarter, half, most)
    )  # fmt: skip


def _horizon(lags: NDArray[np.int64], curve: Curve, threshold: float) -> tuple[int, bool]:
    highest = curve.max(initial=0.0)
    if highest == 0:
        return 0, False
    last = int(np.flatnonzero(curve >= threshold * highest)[-1])
    return int(lags[last]) + 1, last == len(lags) - 1


def _root_mean_square(values: NDArray[np.float64]) -> Any:
    """Over the first axis, through a common scale, since squares may leave float64."""
    scale = np.nanmax(values, initial=0.0) or 1.0
    return scale * np.sqrt(((values / scale) ** 2).mean(0))


def _lines(title: str, reach: Reach, lags: NDArray[np.int64]) -> list[str]:
    curve = reach.curve[np.searchsorted(reach.lags, lags)]
    low, half, high = reach.quartiles
    length = f"{'at least ' if reach.censored else ''}{reach.horizon} steps"
    over = f"median of the rows {half:.4g}, quartiles {low:.4g} and {high:.4g}"
    some = "" if lags[-1] - lags[0] < len(lags) else f", {len(lags)} of them"
    return [
        f"  {title:<16} {sparkline(curve, decades=4)}  lags {lags[0]} to {lags[-1]}{some}",
        f"  {'':<16} horizon {length}; {over}",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _check(samples: int | None, threshold: float) -> None:
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise InputError("samples must be a whole number", given=samples, expected="1 or more, or None")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise InputError("threshold must be a share", given=threshold, expected="above 0, up to 1")


def _check_answer(said: Tensor, again: Tensor, sequences: Sequences) -> None:
    if not sequences.steps:
        raise InputError("no row has a valid step", given=f"lengths={sequences.lengths.tolist()}", expected="T >= 1")
    if len(said) != len(sequences.lengths):
        raise InputError(
            "the output has other rows than x", given=f"{len(said)} rows for {len(sequences.lengths)} of x"
        )
    if not torch.isfinite(said).all():
        raise InputError(
            "the output is not finite",
            given=f"{int((~torch.isfinite(said)).sum())} of {said.numel()} values",
            expected="finite outputs",
            remedy="look for NaN and infinities in x and the scale of the weights",
        )
    if said.shape != again.shape or not torch.allclose(said, again, rtol=1e-9, atol=0.0):
        raise InputError(
            "the model does not repeat its answer to the same input",
            expected="an output that depends on x alone",
            remedy="look for random numbers in eval mode, or a state that is kept from call to call",
        )
