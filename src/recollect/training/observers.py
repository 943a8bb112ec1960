"""Those who watch a training run: a progress bar, a file, or yours."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from recollect._files import write_atomically
from recollect.errors import InputError
from recollect.training.clip import Clipped
from recollect.training.history import History


class Observer(Protocol):
    """What :func:`train` tells its observers. Derive from it and write the methods you need.

    Epochs, and steps within an epoch, count from 0.
    """

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        """Training begins; ``steps`` is the number of batches in an epoch, None if it is not known."""

    def on_step(self, step: int, loss: float, clipped: Clipped) -> None:
        """The optimiser has made a step; ``loss`` was measured before it."""

    def on_epoch(self, epoch: int, history: History) -> None:
        """An epoch is over, validation included; its numbers are the last in ``history``'s lists."""

    def on_train_end(self, history: History) -> None:
        """Training is over, also when it ended in an error."""


class ProgressBar(Observer):
    """A bar with loss, validation loss, gradient norm, share of clipped steps and time left.

    Where the output is not a terminal, about ten plain lines a run take its place.

    Args:
        console: where to draw; None means standard error, so that redirected results stay clean.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        self._epochs = epochs
        self._advances_by_step = steps is not None
        # FORCE_COLOR makes rich take any file for a terminal; a bar in a log file is noise.
        if not (self._console.is_interactive and self._console.file.isatty()):
            return
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            # rich would send a redirected stream to its own console.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(
            "", total=epochs * (steps or 1), epoch=1, epochs=epochs, numbers="loss ..."
        )
        self._progress.start()

    def on_step(self, step: int, loss: float, clipped: Clipped) -> None:
        if self._progress and self._advances_by_step:
            self._progress.advance(self._task)

    def on_epoch(self, epoch: int, history: History) -> None:
        if self._progress:
            self._progress.update(
                self._task,
                advance=0 if self._advances_by_step else 1,
                epoch=min(epoch + 2, self._epochs),
                numbers=_numbers(history, epoch),
            )
        elif epoch % max(1, self._epochs // 10) == 0 and epoch + 1 < self._epochs:
            self._print(f"epoch {epoch + 1}/{self._epochs}  {_numbers(history, epoch)}")

    def on_train_end(self, history: History) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None
        finished = len(history.train_loss)
        if not finished:
            return
        shown = finished - 1 if history.best_epoch is None else history.best_epoch
        kept = "" if history.best_epoch is None else f"kept epoch {shown + 1}: "
        self._print(
            f"trained {finished}/{self._epochs} epochs in {sum(history.seconds):.1f} s; "
            f"{kept}{_numbers(history, shown)}"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


class HistoryFile(Observer):
    """Writes the history as JSON after every epoch; a reader sees a whole file or none.

    Args:
        path: the file; its folder must exist.

    Raises:
        InputError: the folder does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        # Now, rather than after the first epoch has been paid for.
        if not self._path.parent.is_dir():
            raise InputError(
                "the history cannot be written", given=str(path), expected="a path in a folder that exists"
            )

    def on_epoch(self, epoch: int, history: History) -> None:
        write_atomically(self._path, history.to_json())


def _numbers(history: History, epoch: int) -> str:
    # Short names: with the bar and the time left, this fits 80 columns.
    parts = [f"loss {history.train_loss[epoch]:.3g}"]
    if history.validation_loss:
        parts.append(f"val {history.validation_loss[epoch]:.3g}")
    parts.append(f"grad {history.gradient_norm[epoch]:.3g}")
    parts.append(f"clip {history.clipped_fraction[epoch]:.0%}")
    return "  ".join(parts)
