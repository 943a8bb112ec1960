"""Streams of steps, all that may be odd about them, and what must be true of each.

Nothing crashes, every error is ours, what is refused moves no stream, and a step returns what the module does at the
same step, by the reference in float64.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import guarded
import numpy as np
import torch
from hypothesis import strategies as st
from memory_kinds import EITHER, EQUAL, REFUSED
from stepper_arguments import DOES, odd_input, odd_reset, odd_snapshot

import recollect
from recollect import cells, nn
from recollect.errors import RecollectError
from recollect.stream import Stepper
from recollect.stream.model import read
from tolerances import VALUE, assert_equal

DTYPES = {"float32": torch.float32, "float64": torch.float64}

MODELS: dict[str, tuple[Any, ...]] = {
    "lstm": (cells.lstm, 1),
    "gru and linear": (cells.gru, 1, "linear"),
    "two layers": (cells.rnn_tanh, 2),
    "peephole": (cells.peephole_lstm, 1, "linear"),
    "slstm": (cells.slstm, 1),
    "linear": ("linear",),
}


@dataclass(frozen=True)
class Kind:
    """Sessions that the same few kernels serve."""

    model: str
    dtype: str
    inputs: int
    hidden: int

    @classmethod
    def drawn(cls, source: random.Random) -> Kind:
        sizes = source.choice([(1, 1), (3, 8), (5, 4), (17, 33), (40, 70)])
        return cls(source.choice(list(MODELS)), source.choice(list(DTYPES)), *sizes)


@dataclass(frozen=True)
class Session:
    """What is done with a stepper, in turn, in plain values: its repr makes it again."""

    model: str
    dtype: str
    inputs: int
    hidden: int
    bias: bool
    zoneout: bool
    learned: bool
    streams: int | None
    threads: int
    side: str
    does: tuple[tuple[str, str], ...]
    seed: int


@st.composite
def examples(draw: Any, kind: Kind) -> Session:
    """Sessions with a model of a kind."""
    does = []
    for what in draw(
        st.lists(st.sampled_from(["step"] * 6 + ["reset", "snapshot", "restore"]), min_size=1, max_size=12)
    ):
        does.append((what, draw(st.sampled_from(list(DOES[what])))))
    return Session(
        kind.model, kind.dtype, kind.inputs, kind.hidden,
        bias=draw(st.booleans()),
        zoneout=draw(st.booleans()) and kind.model not in ("linear", "slstm"),
        learned=draw(st.booleans()),
        streams=draw(st.none() | st.integers(1, 12) | st.integers(13, 40)),
        threads=draw(st.sampled_from([1, 1, 2])),
        side=draw(st.sampled_from(["after", "after", "before"])),
        does=tuple(does),
        seed=draw(st.integers(0, 2**16)),
    )  # fmt: skip


def _module(session: Session) -> torch.nn.Sequential:
    torch.manual_seed(session.seed)
    layers: list[torch.nn.Module] = []
    inputs, parts = session.inputs, list(MODELS[session.model])
    while parts:
        part = parts.pop(0)
        if part == "linear":
            layers.append(torch.nn.Linear(inputs, 3, bias=session.bias))
            continue
        layers.append(
            nn.Recurrent(
                part, inputs, session.hidden, parts.pop(0), session.bias,
                zoneout=0.25 if session.zoneout else 0.0, learned_initial_state=session.learned,
            )
        )  # fmt: skip
        inputs = session.hidden
    module = torch.nn.Sequential(*layers).to(DTYPES[session.dtype]).eval()
    for name, parameter in module.named_parameters():
        if "initial" in name:  # a cell may divide by its states
            parameter.data = torch.rand_like(parameter) + 0.5
    return module


class Truth:
    """The module, step by step in float64; it remembers the states of each recurrent layer."""

    def __init__(self, module: torch.nn.Sequential) -> None:
        self._module = module.double()
        self.states: list[list[torch.Tensor]] | None = None
        self.shape: tuple[int, ...] | None = None

    def _initial(self, streams: int) -> list[list[torch.Tensor]]:
        found = []
        for layer in self._module:
            if isinstance(layer, nn.Recurrent):
                zeros = torch.zeros(streams, layer.hidden_size, dtype=torch.float64)
                own = []
                for name in layer.cell.states:
                    learned = [
                        layer.get_parameter(f"initial_{name}_l{place}").expand_as(zeros)
                        if layer.learned_initial_state else zeros
                        for place in range(layer.num_layers)
                    ]  # fmt: skip
                    own.append(torch.stack(learned))
                found.append(own)
        return found

    def step(self, x: np.ndarray) -> torch.Tensor:
        if self.states is None:
            self.shape = x.shape
            self.states = self._initial(1 if x.ndim == 1 else len(x))
        rows = torch.from_numpy(np.ascontiguousarray(x, np.float64)).reshape(1, -1, x.shape[-1])
        states = iter(self.states)
        with torch.no_grad(), recollect.set_backend("reference"):
            for layer in self._module:
                if isinstance(layer, nn.Recurrent):
                    own = next(states)
                    rows, final = layer(rows, tuple(own) if len(own) > 1 else own[0])
                    own[:] = final if isinstance(final, tuple) else [final]
                else:
                    rows = layer(rows)
        return rows.reshape(*x.shape[:-1], -1)

    def reset(self, rows: Sequence[int] | None) -> None:
        if rows is None:
            self.states = self.shape = None
        elif self.states is not None and len(rows):
            for mine, initial in zip(self.states, self._initial(self.states_count), strict=True):
                for place, start in enumerate(initial):
                    mine[place] = mine[place].clone()
                    mine[place][:, list(rows)] = start[:, list(rows)]

    @property
    def states_count(self) -> int:
        return 1 if self.shape is None or len(self.shape) == 1 else self.shape[0]

    def copy(self) -> Any:
        return self.shape, None if self.states is None else [list(own) for own in self.states]

    def restore(self, copied: Any) -> None:
        self.shape, states = copied
        self.states = None if states is None else [list(own) for own in states]


def check(session: Session) -> None:
    """Do what a session says, and raise AssertionError, or what was raised, unless it is as it must be."""
    guarded.Side.now = session.side
    torch.set_num_threads(1)
    with guarded.allocations():
        _check(session)


def _check(session: Session) -> None:
    module = _module(session)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        recollect.save(module, path)
        model = read(path)
    layers = [
        replace(
            layer,
            weights={name: guarded.of_array(array) for name, array in layer.weights.items()},
            initial=tuple(map(guarded.of_array, layer.initial)),
        )
        for layer in model.layers
    ]
    stepper = Stepper(replace(model, layers=tuple(layers)), session.threads)
    truth = Truth(module)
    source = np.random.default_rng(session.seed)
    shape = (session.inputs,) if session.streams is None else (session.streams, session.inputs)
    kept = [(stepper.snapshot(), truth.copy())]
    finite = True
    for what, kind in session.does:
        expected, error, y, rows, x = DOES[what][kind], None, None, None, None
        numbers = source.standard_normal(shape)
        try:
            if what == "step":
                given, x = odd_input(session.dtype, numbers, kind)
                y = stepper.step(given)
            elif what == "reset":
                given, rows = odd_reset(stepper.streams, kind)
                stepper.reset(given)
            elif what == "snapshot":
                kept.append((stepper.snapshot(), truth.copy()))
            else:
                bytes_of, _ = kept[session.seed % len(kept)]
                stepper.restore(odd_snapshot(bytes_of, kind, session.seed))
        except RecollectError as raised:
            error = raised
        if what == "step" and truth.shape is not None and truth.shape != shape and expected is EQUAL:
            expected = EITHER  # restored, with another number of streams
        if what == "step" and kind in ("fewer streams", "more streams", "three axes") and truth.shape is None:
            expected = EITHER  # the first step may have any number
        if what == "restore" and kind in ("more streams", "negative", "axes", "huge", "overflowing"):
            expected = max(expected, EITHER)
        if error is None and expected is REFUSED:
            raise AssertionError(f"{what} {kind!r} was accepted, which it must not be")
        if error is not None:
            if expected is EQUAL:
                raise AssertionError(f"{what} {kind!r} was refused, which is valid") from error
            continue
        if what == "step":
            if expected is EITHER:
                return
            true = truth.step(x)
            finite = finite and kind not in ("nan", "infinite")
            assert isinstance(y, np.ndarray), type(y)
            assert y.dtype == session.dtype, y.dtype
            assert y.shape == tuple(true.shape), f"{y.shape} is not {tuple(true.shape)}"
            if finite:
                assert_equal(torch.from_numpy(y), true, VALUE, f"step {kind!r}")
        elif what == "reset":
            truth.reset(rows)
        elif what == "restore":
            truth.restore(kept[session.seed % len(kept)][1])
