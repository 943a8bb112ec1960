"""Those who watch a training run: a progress bar, or yours; those that write are in `recollect.training.records`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from recollect.training.clip import Clipped
from recollect.training.culprit import Culprit
from recollect.training.history import History


class StopTraining(Exception):  # noqa: N818  (as StopIteration: it is no error)
    """Ends a training run as its last epoch would; any method of an `Observer` may raise it.

    It may come after any step: an epoch that is not over then has no entry in the history. All observers still
    hear of what they are being told. The model gets its best weights, a checkpoint is written, and :func:`train`
    returns the history, whose ``stopped`` is the reason. The run is over, for its checkpoint too: the same call
    returns that history at once. To go on another time, end the run as Ctrl-C does instead, by
    ``signal.raise_signal(signal.SIGINT)``.

    Args:
        reason: for those who read the history.
    """

    def __init__(self, reason: str = "an observer ended the run") -> None:
        super().__init__(reason)
        self.reason = reason


class Observer(Protocol):
    """What :func:`train` tells its observers. Derive from it and write the methods you need.

    Epochs, and steps within an epoch, count from 0. Any method may end the run: ``raise StopTraining("reason")``.
    """

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        """Training begins; ``steps`` is the number of steps in an epoch, None if it is not known."""

    def on_resume(self, epoch: int, step: int, history: History) -> None:
        """Right after ``on_train_begin``: a checkpoint was loaded, and ``step`` of ``epoch`` comes next.

        What was heard of this step and later ones before the run was interrupted is void.
        """

    def on_step(self, step: int, loss: float, clipped: Clipped) -> None:
        """The optimiser has made a step; ``loss`` was measured before it.

        With ``clipped.finite`` False it was skipped; ``clipped.norm`` is NaN where it was the loss that was
        not finite.
        """

    def on_skip(self, step: int, look: Callable[[], Culprit]) -> None:
        """Right after ``on_step``: this step was skipped, as its loss or gradient was not finite.

        ``look()`` makes it again, under hooks and with the same dropout masks, and says where the numbers went bad. It
        takes as long as a few steps, leaves weights, buffers and random state as they are, and looks but once.
        """

    def on_epoch(self, epoch: int, history: History) -> None:
        """An epoch is over, validation included; its numbers are the last in ``history``'s lists."""

    def on_train_end(self, history: History) -> None:
        """Training is over, also when it ended in an error."""


class Audience:
    """The observers of one run, who are told of it together."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self._begun: list[Observer] = []
        self.hears_of_skips = any(type(observer).on_skip is not Observer.on_skip for observer in self._observers)

    def begin(self, epochs: int, steps: int | None) -> None:
        stops = []
        for observer in self._observers:
            stops.append(_told(observer.on_train_begin, epochs, steps))
            self._begun.append(observer)
        _end_run_if_asked(stops)

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of all observers; only then end the run, if one of them asks for it (`StopTraining`)."""
        _end_run_if_asked([_told(getattr(observer, method), *arguments) for observer in self._observers])

    def end(self, history: History) -> None:
        """Tell all who heard the beginning, whatever some of them raise."""
        with contextlib.ExitStack() as at_end:
            for observer in self._begun:
                at_end.callback(_told, observer.on_train_end, history)


def _told(method: Callable[..., None], *arguments: Any) -> StopTraining | None:
    try:
        method(*arguments)
    except StopTraining as stop:
        return stop
    return None


def _end_run_if_asked(stops: Sequence[StopTraining | None]) -> None:
    for stop in stops:
        if stop is not None:
            raise stop


class ProgressBar(Observer):
    """A bar with losses, metrics, gradient norm, shares of clipped and skipped steps, and time left.

    Where the output is not a terminal, about ten plain lines a run take its place.

    Args:
        console: where to draw; None means standard error, so that redirected results stay clean.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress: Progress | None = None

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        self._epochs = epochs
        self._steps = steps
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

    def on_resume(self, epoch: int, step: int, history: History) -> None:
        within = f", step {step}" if step else ""
        self._print(f"resumed after epoch {epoch}{within} of {self._epochs} epochs")
        if self._progress:
            done = epoch * self._steps + step if self._steps else epoch
            self._progress.update(self._task, completed=done, epoch=min(epoch + 1, self._epochs))

    def on_step(self, step: int, loss: float, clipped: Clipped) -> None:
        if self._progress and self._steps:
            self._progress.advance(self._task)

    def on_epoch(self, epoch: int, history: History) -> None:
        if self._progress:
            self._progress.update(
                self._task,
                advance=0 if self._steps else 1,
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
            if history.stopped is not None:
                self._print(f"stopped before the end of the first epoch: {history.stopped}")
            return
        shown = finished - 1 if history.best_epoch is None else history.best_epoch
        kept = "" if history.best_epoch is None else f"kept epoch {shown + 1}: "
        stopped = "" if history.stopped is None else f"; stopped: {history.stopped}"
        skipped = sum(history.skipped_steps)
        lost = f"; skipped {skipped} steps whose loss or gradient was not finite" if skipped else ""
        self._print(
            f"trained {finished}/{self._epochs} epochs in {sum(history.seconds):.1f} s; "
            f"{kept}{_numbers(history, shown)}{lost}{stopped}"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def _numbers(history: History, epoch: int) -> str:
    # Short names: with the bar and the time left, this fits 80 columns.
    parts = [f"loss {history.train_loss[epoch]:.3g}"]
    if history.validation_loss:
        parts.append(f"val {history.validation_loss[epoch]:.3g}")
    parts += [f"{name} {values[epoch]:.3g}" for name, values in history.metrics.items()]
    parts.append(f"grad {history.gradient_norm[epoch]:.3g}")
    parts.append(f"clip {history.clipped_fraction[epoch]:.0%}")
    if history.skipped_steps[epoch]:
        parts.append(f"skipped {history.skipped_steps[epoch]}")
    return "  ".join(parts)
