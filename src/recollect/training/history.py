"""What a training run was like, epoch by epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from recollect.training.clip import Clipped


class Evaluation(NamedTuple):
    """Means over all samples of some batches.

    Attributes:
        loss: the mean loss.
        metrics: the mean of each metric, by its name.
    """

    loss: float
    metrics: dict[str, float]


@dataclass
class History:
    """One entry per finished epoch in every list; ``best_epoch`` indexes them, so it counts from 0.

    Attributes:
        train_loss: mean over the epoch's samples, measured while the weights were changing; steps whose
            loss was not finite are left out, NaN if that is all of them.
        validation_loss: mean over the validation samples after the epoch; empty without validation.
        gradient_norm: mean global norm before clipping, over the steps in which it was finite; NaN if none.
        clipped_fraction: share of the steps whose gradient was rescaled or dropped.
        skipped_steps: steps without an update because their loss or gradient was not finite.
        learning_rate: of the first parameter group, after the epoch's last step; a scheduler that steps once
            an epoch has not changed it yet.
        seconds: wall-clock time, validation included.
        best_epoch: the epoch with the lowest validation loss; None without validation.
        metrics: means over the validation samples after the epoch, a list for each name; empty without.
        stopped: why an observer ended the run (`StopTraining`); None where none did.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    clipped_fraction: list[float] = field(default_factory=list)
    skipped_steps: list[int] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    metrics: dict[str, list[float]] = field(default_factory=dict)
    stopped: str | None = None

    def epoch(self, index: int) -> dict[str, float]:
        """The numbers of one epoch by name, without those that the run does not have."""
        lists = {column.name: getattr(self, column.name) for column in fields(self)} | self.metrics
        return {name: values[index] for name, values in lists.items() if isinstance(values, list) and values}

    def is_over(self, patience: int | None) -> bool:
        """Whether an observer ended the run, or its last ``patience`` epochs all had no lower validation loss."""
        if self.stopped is not None:
            return True
        if patience is None or self.best_epoch is None:
            return False
        return len(self.validation_loss) - 1 - self.best_epoch >= patience


@dataclass
class Tally:
    """Sums over the steps of the epoch under way, from which its entry in the history is made."""

    steps: int = 0
    loss: float = 0.0
    samples: int = 0
    norm: float = 0.0
    finite: int = 0
    clipped: int = 0
    seconds: float = 0.0

    def add(self, loss: float, samples: int, clipped: Clipped) -> None:
        self.steps += 1
        self.clipped += clipped.clipped
        if math.isfinite(loss):
            self.loss += loss * samples
            self.samples += samples
        if clipped.finite:
            self.norm += clipped.norm
            self.finite += 1

    def close(self, history: History, validation: Evaluation | None, learning_rate: float) -> None:
        """Add this epoch to ``history``."""
        history.train_loss.append(self.loss / self.samples if self.samples else math.nan)
        history.gradient_norm.append(self.norm / self.finite if self.finite else math.nan)
        history.clipped_fraction.append(self.clipped / self.steps)
        history.skipped_steps.append(self.steps - self.finite)
        history.learning_rate.append(learning_rate)
        history.seconds.append(self.seconds)
        if validation is not None:
            if validation.loss < min(history.validation_loss, default=math.inf):
                history.best_epoch = len(history.validation_loss)
            history.validation_loss.append(validation.loss)
            for name, value in validation.metrics.items():
                history.metrics.setdefault(name, []).append(value)
