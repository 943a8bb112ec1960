"""Observers that write down what a training run was like: a file of JSON lines, and TensorBoard."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from recollect._files import write_atomically
from recollect.errors import InputError, MissingPackageError
from recollect.training.clip import Clipped
from recollect.training.history import History
from recollect.training.observers import Observer


class HistoryFile(Observer):
    r"""Appends the numbers of each epoch to a file, one JSON object a line, as they come.

    An epoch's line is ``{"epoch": 0, "train_loss": ..., ...}`` with the names of :class:`History`; epochs
    count from 0, and what is not finite, which JSON does not have, is null. A step's line, with
    ``steps=True``, is ``{"epoch": 0, "step": 0, "loss": ..., "gradient_norm": ..., "skipped": false}``.

    A new run begins a new file. A run that is resumed goes on with the old one, cut back to where the
    checkpoint is: half a last line, and what is about to be done again, goes; epochs that are missing come.

    Args:
        path: the file; its folder must exist.
        steps: also write a line for each step.

    Raises:
        InputError: the folder does not exist.
    """

    def __init__(self, path: str | os.PathLike[str], *, steps: bool = False) -> None:
        self._path, self._steps = Path(path), steps
        # Now, rather than after the first epoch has been paid for.
        if not self._path.parent.is_dir():
            raise InputError(
                "the history cannot be written", given=str(path), expected="a path in a folder that exists"
            )

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        # An old file stays until the first line of a new run: this may be a run that is resumed.
        self._epoch, self._begun = 0, False

    def on_resume(self, epoch: int, step: int, history: History) -> None:
        lines: list[str] = []
        of_steps = self._step_lines(before=(epoch, step))
        for index in range(epoch + 1):
            lines += of_steps.get(index, [])
            if index < epoch:
                lines.append(_line(epoch=index, **history.epoch(index)))
        write_atomically(self._path, "".join(lines))
        self._epoch, self._begun = epoch, True

    def on_step(self, step: int, loss: float, clipped: Clipped) -> None:
        if self._steps:
            self._append(
                _line(epoch=self._epoch, step=step, loss=loss, gradient_norm=clipped.norm, skipped=not clipped.finite)
            )

    def on_epoch(self, epoch: int, history: History) -> None:
        self._append(_line(epoch=epoch, **history.epoch(epoch)))
        self._epoch = epoch + 1

    def _append(self, line: str) -> None:
        with open(self._path, "a" if self._begun else "w", encoding="utf-8") as file:
            file.write(line)
        self._begun = True

    def _step_lines(self, before: tuple[int, int]) -> dict[int, list[str]]:
        """The lines of steps before a place, by epoch; what cannot be read is passed over."""
        found: dict[int, list[str]] = {}
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""
        for line in text.splitlines():
            try:
                content = json.loads(line)
                if (content["epoch"], content["step"]) < before:
                    found.setdefault(content["epoch"], []).append(line + "\n")
            except (ValueError, LookupError, TypeError):
                continue
        return found


class TensorBoard(Observer):
    """Writes the numbers of each epoch as scalars for TensorBoard: ``pip install recollect[tensorboard]``.

    The tags are ``train_loss``, ``validation_loss`` and so on, as in :class:`History`. After a resumption,
    TensorBoard hides the epochs that are done again.

    Args:
        folder: where TensorBoard looks (``tensorboard --logdir``); made if it is missing.

    Raises:
        MissingPackageError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "TensorBoard is not installed", given=str(error), remedy="pip install recollect[tensorboard]"
            ) from error
        self._make_writer: Any = SummaryWriter
        self._folder = os.fspath(folder)

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        self._writer = self._resumed_at = None

    def on_resume(self, epoch: int, step: int, history: History) -> None:
        self._resumed_at = epoch

    def on_epoch(self, epoch: int, history: History) -> None:
        if self._writer is None:
            self._writer = self._make_writer(self._folder, purge_step=self._resumed_at)
        for name, value in history.epoch(epoch).items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def on_train_end(self, history: History) -> None:
        if self._writer is not None:
            self._writer.close()


def _line(**numbers: float) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in numbers.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
