"""Where a training run stands: all that the loop changes, which is all that a checkpoint holds."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from recollect.errors import TrainingError
from recollect.training.batches import Batch, Group, grouped
from recollect.training.clip import Clipped
from recollect.training.generators import Generators
from recollect.training.history import Evaluation, History, Tally


class Run:
    """A training run between two of its steps.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the optimiser in the epoch under way.
        between_steps: whether this is a place to go on from: nothing is half changed.
        skips_in_a_row: steps without an update since the last one with.
        history: the finished epochs, and why there are no more if an observer says so.
        best: the weights and buffers of the best epoch, None without validation.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler | None, generators: Generators
    ) -> None:
        self.model, self.optimizer, self.scheduler, self.generators = model, optimizer, scheduler, generators
        self.epoch = self.step = self.skips_in_a_row = 0
        self.between_steps = True
        self.history, self.best = History(), None
        self._tally = Tally()
        self._started = time.perf_counter()
        self._at_epoch_start = self._at_step = generators.state()

    def rest_of_epoch(self, batches: Iterable[Batch], accumulate: int) -> Iterator[tuple[int, Group]]:
        """Number the steps of the epoch under way that are not made yet, with the batches of each.

        After a resumption within an epoch, its data is drawn again from the random state in which the
        epoch began. The batches that the weights know already are passed over, and the random state
        becomes that of the interrupted run.
        """
        self._started = time.perf_counter() - self._tally.seconds
        if not self.step:
            self._at_epoch_start = self.generators.state()
        groups = grouped(batches, accumulate)
        if self.step:
            if sum(1 for _ in itertools.islice(groups, self.step)) < self.step:
                raise TrainingError(
                    "the batches end before the place where the run was interrupted",
                    expected=f"more than {self.step} steps in an epoch",
                    remedy="resume with the data that the run began with",
                )
            self.generators.restore(self._at_step)
        for group in groups:
            self.between_steps = False
            yield self.step, group
        self.between_steps = False

    def end_step(self, loss: float, samples: int, clipped: Clipped) -> None:
        self._tally.add(loss, samples, clipped)
        self.skips_in_a_row = 0 if clipped.finite else self.skips_in_a_row + 1
        self.step += 1
        self.between_steps = True

    def end_epoch(self, validation: Evaluation | None, learning_rate: float) -> None:
        self._tally.seconds = time.perf_counter() - self._started
        self._tally.close(self.history, validation, learning_rate)
        if self.history.best_epoch == self.epoch:
            self.best = copy.deepcopy(self.model.state_dict())
        self._tally = Tally()
        self.epoch += 1
        self.step = 0
        self.between_steps = True

    def restore_best(self) -> None:
        if self.best is not None:
            self.model.load_state_dict(self.best)

    def state(self) -> dict[str, Any]:
        """Everything that `load` needs to go on from here."""
        self._tally.seconds = time.perf_counter() - self._started if self.step else 0.0
        now = self.generators.state()
        return {
            "epoch": self.epoch,
            "step": self.step,
            "skips_in_a_row": self.skips_in_a_row,
            "tally": dataclasses.asdict(self._tally),
            "history": dataclasses.asdict(self.history),
            "model": dict(self.model.state_dict()),
            "best": None if self.best is None else dict(self.best),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "random": now,
            "random_at_epoch_start": self._at_epoch_start if self.step else now,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Stand where the run stood that returned ``state``; its parts must fit this run's."""
        self.epoch, self.step, self.skips_in_a_row = state["epoch"], state["step"], state["skips_in_a_row"]
        self._tally, self.history = Tally(**state["tally"]), History(**state["history"])
        if state["best"] is not None:
            self.best = self._as_state_dict(state["best"])
        self._at_epoch_start, self._at_step = state["random_at_epoch_start"], state["random"]
        self.model.load_state_dict(self._as_state_dict(state["model"]))
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        # PyTorch's schedulers warn of an optimiser that has made no step; this one's were in another process.
        self.optimizer._opt_called = bool(self.epoch or self.step)  # pyright: ignore[reportAttributeAccessIssue]
        # A run that was stopped within an epoch draws no data of that epoch again.
        self.generators.restore(self._at_epoch_start if self.history.stopped is None else self._at_step)

    def _as_state_dict(self, tensors: dict[str, Any]) -> dict[str, Any]:
        # A state_dict carries its modules' versions in an attribute; the model's own has the right ones.
        state = self.model.state_dict()
        state.update(tensors)
        return state
