"""A trained model on live streams: one step at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from recollect.errors import InputError
from recollect.stream import snapshot
from recollect.stream.links import Link, Streams
from recollect.stream.model import Model, read

# For all but the plain step, which takes no lock: the interpreter's own is enough for it.
_lock = threading.RLock()


def _start_afresh() -> None:
    """In a forked child: a thread that is not there may hold the lock."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)


class Stepper:
    """Runs a saved model on one stream or many, a time step per call, and keeps what they remember.

    What it returns is what the module in eval mode returns at the same step of the whole sequence, from recurrent
    layers to the bit where the llvm backend runs the module. It needs NumPy, llvmlite and the model file, not torch.

    It runs what `recollect.save` takes, layer after layer as they come: recurrent layers of any cell that read
    forward in time (the cell's graph is in the file), and ``torch.nn.Linear``. Dropout is off and zoneout is its
    mean, as in eval mode.

    Several Python threads may use a stepper: a step holds the interpreter's lock from beginning to end, so that
    steps come one after the other, in some order.

    Attributes:
        input_size: I, features of the input.
        output_size: O, features of the output.
        dtype: of the weights, the states and the output: float32 or float64.
        streams: B, the number of streams; None until the first step fixes it.

    Example:
        >>> recollect.save(torch.nn.Sequential(recollect.nn.LSTM(3, 64), torch.nn.Linear(64, 1)), path)
        >>> stepper = recollect.stream.Stepper.load(path)    # in a process without torch
        >>> y = stepper.step(x)                              # x [3], y [1]
        >>> memory = stepper.snapshot()                      # bytes, to go on from here in another process
    """

    def __init__(self, model: Model, threads: int | None = None) -> None:
        """Pack the weights of a model; `load` reads one from a file."""
        self._threads = _most_threads(threads)
        self._model = model
        self.input_size, self.output_size = model.layers[0].inputs, model.layers[-1].hidden
        self.dtype = model.dtype
        self._links = [Link(layer, model.dtype) for layer in model.layers]
        self._streams: Streams | None = None
        self._call: Any = _nothing_yet

    @classmethod
    def load(cls, path: str | os.PathLike[str], threads: int | None = None) -> Stepper:
        """Load a model that `recollect.save` wrote.

        Kernels that this machine has not compiled before are compiled now, two for each layer, in a third of a second
        each.

        Args:
            path: the model file.
            threads: how many threads a step may use; None stands for as many as this process has cores. A step that
                is not worth more than one uses one, as every step of a few streams does. They are shared by all
                steppers, and change no bit.

        Raises:
            ModelFileError: the file is truncated, altered, foreign, of a newer format, or of another kind.
            InputError: the model cannot run step by step (a bidirectional layer reads the future, a `Forecaster`
                scales each context anew), is neither in float32 nor in float64, or its layers do not follow on each
                other; ``threads`` is no positive whole number.
            NotYetError: a layer projects its output (``proj_size``).
            OSError: there is no such file, or it cannot be read.
        """
        return cls(read(path), threads)

    @property
    def streams(self) -> int | None:
        """B, the number of streams; None until the first step fixes it."""
        return None if self._streams is None else self._streams.count

    def step(self, x: Any) -> np.ndarray:
        """Take every stream one step further.

        The first step after `load` or `reset` fixes the number of streams. An array of the stepper's dtype, contiguous
        and in the shape of the first step is read as it is; anything else that holds real numbers is converted,
        which takes some microseconds more. NaN and infinities flow as in the module.

        Args:
            x: [B, I], a row for each stream, or [I] for a single one.

        Returns:
            A new array [B, O], or [O], of the stepper's dtype.

        Raises:
            InputError: ``x`` holds no real numbers, has another shape, or another number of streams than before. No
                stream has moved then.
        """
        y = self._call(x)
        return self._step_slowly(x) if y is None else y

    def reset(self, streams: Any = None) -> None:
        """Let streams begin anew, from the initial states of the model.

        Args:
            streams: which ones: indices, one index, or a bool mask [B]. None stands for all, and the next step fixes
                their number anew.

        Raises:
            InputError: there are no such streams.
        """
        with _lock:
            if streams is None:
                self._call, self._streams = _nothing_yet, None
                return
            rows = _rows(streams, self.streams)
            if self._streams is not None:
                with _at_rest(self._streams):
                    self._streams.reset(rows)

    def snapshot(self) -> bytes:
        """What all streams remember, to the bit: `restore` goes on from there, in any process, on any machine.

        The format is written out in `recollect.stream.snapshot`: 96 bytes and the states.
        """
        with _lock:
            streams = self._streams
            if streams is None:
                return snapshot.pack(self._model, 0, 0, [])
            with _at_rest(streams):
                states = streams.read()
        return snapshot.pack(self._model, streams.count, len(streams.shape), states)

    def restore(self, data: bytes) -> None:
        """Go on from a snapshot: with its number of streams, whatever it was before, and what they remembered.

        A model of linear layers alone remembers nothing: the next step then fixes the number of streams.

        Args:
            data: what `snapshot` returned, for this model.

        Raises:
            InputError: the bytes are truncated, altered, of another model or of another version. The streams are then
                as they were.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise InputError("a snapshot is bytes", given=type(data).__name__, expected="what snapshot() returned")
        count, axes, states = snapshot.unpack(self._model, bytes(data))
        shape = (count, self.input_size)[2 - axes :]
        with _lock:
            if not count:
                self.reset()
                return
            streams = self._streams
            if streams is None or streams.shape != shape:
                streams = Streams(self._links, self.dtype, shape, self._threads)
            with _at_rest(streams):
                streams.write(states)
            self._streams, self._call = streams, streams.chain.call

    def _step_slowly(self, x: Any) -> np.ndarray:
        """A step whose input needs a look: the first one, one to be converted, or one to be refused."""
        x = _as_numbers(x, self.dtype)
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size or not x.size:
            raise InputError(
                "a step takes one row of features for each stream", given=list(x.shape),
                expected=f"[{self.input_size}], or [B, {self.input_size}] with B >= 1",
            )  # fmt: skip
        with _lock:
            streams = self._streams
            if streams is None:
                streams = self._streams = Streams(self._links, self.dtype, x.shape, self._threads)
            elif x.shape != streams.shape:
                raise InputError(
                    "the number of streams changed", given=list(x.shape),
                    expected=f"{list(streams.shape)}, as in the first step",
                    remedy="call reset() to begin anew with another number, or load one stepper for each",
                )  # fmt: skip
            y = np.empty((*x.shape[:-1], self.output_size), self.dtype)
            streams.chain.run(x.ctypes.data, y.ctypes.data)
            self._call = streams.chain.call
            return y


def _most_threads(given: int | None) -> int:
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InputError("threads is no positive whole number", given=repr(given), expected="1 or more, or None")
    return given


def _nothing_yet(x: Any) -> None:
    """The plain step while the number of streams is not known."""


@contextmanager
def _at_rest(streams: Streams) -> Iterator[None]:
    """Nobody steps meanwhile: plain steps are not taken, and the others wait for the lock, which is held."""
    streams.chain.open(False)
    try:
        yield
    finally:
        streams.chain.open(True)


def _as_numbers(x: Any, dtype: np.dtype) -> np.ndarray:
    try:
        array = np.asarray(x)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"numbers of dtype {array.dtype}")
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite, as in torch
            return np.require(array, dtype, ["C", "A"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            "a step takes real numbers", given=f"{type(x).__name__}: {error}", expected=f"an array of {dtype}"
        ) from error


def _rows(streams: Any, count: int | None) -> np.ndarray:
    """Which rows an index, several, or a mask mean."""
    try:
        given = np.asarray(streams)
    except (TypeError, ValueError, RuntimeError):  # such as lists of unequal lengths
        given = np.empty((0, 0))
    known = "no streams yet" if count is None else f"{count} streams"
    if given.dtype == bool and given.shape == (count,):
        return np.flatnonzero(given)
    if given.ndim <= 1 and (given.dtype.kind in "iu" or not given.size):
        rows = given.astype(np.int64).reshape(-1)
        if ((rows >= 0) & (rows < (count or 0))).all():
            return rows
    raise InputError(
        "there are no such streams", given=f"{streams!r}, of {known}",
        expected="indices from 0 to B - 1, or a bool mask [B]",
    )  # fmt: skip
