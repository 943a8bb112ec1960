"""Checkpoints: a run that is killed goes on where it stood, and ends with the same bits.

A checkpoint is a file of Recollect's own format (`recollect.model_file.container`): safetensors, one JSON
header with a checksum, no pickle. It is replaced as a whole, so at every moment there is the old one or
the new one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from recollect._files import remove_leftovers
from recollect.errors import InputError, ModelFileError, TrainingError
from recollect.model_file.container import read_model, require_kind, write_model
from recollect.training._arguments import whole_number
from recollect.training.packing import pack, unpack
from recollect.training.run import Run

_KIND = "checkpoint"
_MOST_DIFFERENCES_SHOWN = 4


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often `train` writes down where it stands.

    It does so before the first step and after it (what cannot be written is noticed at once), after every
    epoch, and on the first Ctrl-C.

    Args:
        path: the file, replaced each time; its folder must exist.
        every: also after every so many steps within an epoch; None for the ends of epochs only.

    Raises:
        InputError: the folder does not exist, or ``every`` is not a whole number above 0.
    """

    path: str | os.PathLike[str]
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            whole_number("every", self.every, at_least=1)
        if not Path(self.path).parent.is_dir():
            raise InputError(
                "checkpoints cannot be written",
                given=os.fspath(self.path),
                expected="a path in a folder that exists",
            )


class Keeper(contextlib.AbstractContextManager["Keeper"]):
    """Writes the checkpoints of one run; does nothing without `Checkpoints`.

    As a context manager it holds back the first Ctrl-C, which may come in the middle of a step, until the
    loop says that one is over. The second one interrupts at once. That needs the main thread and Python's
    own handler; a handler of the caller's stays in place.
    """

    def __init__(self, checkpoints: Checkpoints | None, run: Run) -> None:
        self._checkpoints, self._run = checkpoints, run
        self._setup: dict[str, Any] = {}
        self._interrupted = self._handles = False

    def resume(self, **arguments: Any) -> bool:
        """Go on from the file if there is one, else write the first; returns whether there was one.

        Args:
            **arguments: what `train` was called with, as far as it must not change.

        Raises:
            TrainingError: the file is damaged or foreign, or is of another run; nothing was changed then.
        """
        if self._checkpoints is None:
            return False
        path = Path(self._checkpoints.path)
        remove_leftovers(path)
        setup = _describe_setup(self._run, arguments)
        try:
            state, self._setup = _read(path, self._run, setup)
        except FileNotFoundError:
            self._setup = setup
            self._write()
            return False
        self._run.load(state)
        return True

    def after_step(self) -> None:
        if self._checkpoints is None:
            return
        first = (self._run.epoch, self._run.step) == (0, 1)
        every = self._checkpoints.every
        if first or self._interrupted or (every is not None and self._run.step % every == 0):
            self._write()
        self._stop_if_interrupted()

    def after_epoch(self) -> None:
        if self._checkpoints is not None:
            self._write()
            self._stop_if_interrupted()

    def after_stop(self) -> None:
        # What is raised elsewhere than in an observer may come in the middle of a step.
        if self._checkpoints is not None and self._run.between_steps:
            self._write()

    def __enter__(self) -> Keeper:
        self._handles = (
            self._checkpoints is not None
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._handles:
            signal.signal(signal.SIGINT, self._note_interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._interrupted and (error is None or isinstance(error, Exception)):
            # Ctrl-C also reaches the workers of a DataLoader; the loop then sees them gone.
            if self._run.between_steps:
                self._write()
            raise KeyboardInterrupt from error

    def _note_interrupt(self, signum: int, frame: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def _stop_if_interrupted(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def _write(self) -> None:
        assert self._checkpoints is not None
        arrays: dict[str, np.ndarray] = {}
        state = {name: pack(part, name, arrays) for name, part in self._run.state().items()}
        write_model(self._checkpoints.path, {"kind": _KIND, "state": state, "setup": self._setup}, arrays)


def _describe_setup(run: Run, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a run must have in common with the checkpoint that it resumes: JSON values by readable names.

    Raises:
        TrainingError: a value that no checkpoint can hold.
    """
    setup = {name.replace("_", " "): pack(value, name, {}) for name, value in arguments.items()}
    setup["random generators"] = run.generators.names
    for name, module in run.model.named_modules():
        setup[f"class of module {name!r}"] = type(module).__qualname__
    for name, value in run.model.state_dict().items():
        kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        setup[f"the model's {name}"] = kind
    scheduler = None if run.scheduler is None else run.scheduler.state_dict()
    setup["optimizer"] = type(run.optimizer).__qualname__
    setup["scheduler"] = None if run.scheduler is None else type(run.scheduler).__qualname__
    return setup | _describe_optimizer(run.optimizer.state_dict(), scheduler)


def _describe_optimizer(optimizer: dict[str, Any], scheduler: dict[str, Any] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for i, group in enumerate(optimizer["param_groups"]):
        values |= {f"{name} in group {i} of the optimizer": value for name, value in group.items()}
    if scheduler is not None:
        values |= {f"{name} of the scheduler": value for name, value in scheduler.items()}
    tensors: dict[str, np.ndarray] = {}
    packed = {name: pack(value, name, tensors) for name, value in values.items()}
    # Few and small: a learning rate can be a tensor.
    return packed | {f"value of {name}": array.tolist() for name, array in tensors.items()}


def _read(path: Path, run: Run, setup: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state in a checkpoint and the setup of its run, once it is certain that both can be used."""
    try:
        header, arrays = read_model(path)
        require_kind(header, _KIND, path)
        state = {name: unpack(part, arrays) for name, part in header["state"].items()}
        if state.keys() != run.state().keys():
            raise ValueError(f"it holds {sorted(state)}")
        begun = header["setup"]
        now = begun | _describe_optimizer(state["optimizer"], state["scheduler"])
    except (ModelFileError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise TrainingError(
            f"{path.name} cannot be resumed from",
            given=str(error),
            expected="a checkpoint that train() wrote",
            remedy="put the file back as it was, or delete it to begin anew",
        ) from error
    # Objects that went on since they were made, as after Ctrl-C in a notebook, fit what the file says of now.
    differences = [
        f"{name}: {setup.get(name)} here, {begun.get(name)} there"
        for name in setup | begun
        if setup.get(name) not in (begun.get(name), now.get(name))
    ]
    if differences:
        more = len(differences) - _MOST_DIFFERENCES_SHOWN
        raise TrainingError(
            f"{path.name} is the checkpoint of another run",
            given="; ".join(differences[:_MOST_DIFFERENCES_SHOWN]) + (f"; and {more} more" if more > 0 else ""),
            expected="the model, optimizer, scheduler, data and arguments that the run began with",
            remedy="use those, or delete the file to begin anew",
        )
    return state, begun
