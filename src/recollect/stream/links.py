"""The layers of a model as kernels with their weights packed, and the memory of the streams that run through them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import numpy as np

from recollect.engine.llvm.chain import Chain
from recollect.engine.llvm.division import Division
from recollect.engine.llvm.kernels import kernels_for
from recollect.engine.llvm.problem import Pass, Problem
from recollect.engine.llvm.rows import SLOTS, Rows
from recollect.engine.llvm.team import Team
from recollect.engine.llvm.tiling import Tiling
from recollect.engine.llvm.workers import PARTS, WORKERS
from recollect.engine.plan import Variant
from recollect.stream.model import Layer

_LINE = 64  # bytes; vectors that begin on a cache line are loaded fastest
_ALONE = Team(0, 0, 0, "one thread is enough")

_EITHER = (1, 2)  # streams: one has a kernel of its own, however many there are share another

# Below this many multiply-adds in a layer's step a second thread costs more than it brings.
_MUCH = 1 << 18


def _aligned(*shape: int, dtype: np.dtype) -> np.ndarray:
    """An array of zeros that begins on a cache line."""
    count = int(np.prod(shape))
    memory = np.zeros(count + _LINE // dtype.itemsize, dtype)
    start = -memory.ctypes.data % _LINE // dtype.itemsize
    return memory[start : start + count].reshape(shape)


class Link:
    """A layer whose weights lie as its kernels read them.

    Attributes:
        layer: what it was made from.
    """

    def __init__(self, layer: Layer, dtype: np.dtype) -> None:
        self.layer, self._dtype, cell = layer, dtype, layer.cell
        self._kernels = kernels_for(
            cell.graph, cell.gates, cell.states, cell.vectors, dtype.name, Variant(zoneout=bool(layer.zoneout))
        )
        self._values: dict[Tiling, dict[str, int]] = {}
        self._keep = [np.full(layer.hidden, probability, dtype) for probability in layer.zoneout]
        self._packed: list[np.ndarray] = []
        for streams in _EITHER:
            _ = self.problem(streams).infer  # compiled now, rather than at the first step

    def values(self, problem: Problem) -> dict[str, int]:
        """The arguments of a problem's kernel that are the same for all streams and steps, its weights packed."""
        tiling = problem.forward_tiling
        if tiling not in self._values:
            self._values[tiling] = self._pack(problem.infer)
        return self._values[tiling]

    def _pack(self, kernel: Pass) -> dict[str, int]:
        layer, dtype = self.layer, self._dtype
        starts = kernel.parts.starts  # of the packed vectors, biases and weights, and then of what is not needed here
        self._packed.append(_aligned(starts[3], dtype=dtype))
        base = self._packed[-1].ctypes.data
        places = ("packed_vectors", "packed_bias", "packed")
        values = {name: base + start * dtype.itemsize for name, start in zip(places, starts, strict=False)} | {
            f"keep.{state}": each.ctypes.data for state, each in zip(layer.cell.states, self._keep, strict=False)
        }
        weights = {name: np.ascontiguousarray(array) for name, array in layer.weights.items()}
        given = {name: array.ctypes.data for name, array in weights.items()}
        arguments = kernel.prepared(values | given)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel.entry("pack_weights"))(arguments)
        return values

    def problem(self, streams: int, threads: int = 1) -> Problem:
        """One step of so many streams on so many threads; its kernel's arguments point into it."""
        team, layer = WORKERS.team(threads) if threads > 1 else _ALONE, self.layer
        division = Division(team.size(PARTS * threads), by_units=False)
        made = Problem(
            self._kernels, layer.inputs, layer.hidden, streams,
            unequal=False, longest=1, reverse=False, division=division, team=team, apart=False,
        )  # fmt: skip
        return made.along(Rows.of([streams], np.arange(streams), (streams,)))

    def threads(self, streams: int, most: int) -> int:
        """How many threads one step of so many streams is worth."""
        layer = self.layer
        work = streams * len(layer.cell.gates) * layer.hidden * (layer.inputs + layer.hidden)
        return 1 if work < _MUCH else max(1, min(most, streams // 4))


class Stage:
    """A layer with the memory that a number of streams need there.

    Every state has two sets of rows that take turns: a step reads one and writes the other.

    Args:
        link: the layer.
        streams: B.
        x: address of its input [B, I]; 0 where that comes with each step.
        threads: how many to use at most.

    Attributes:
        link: the layer.
        states: [2, B, H rounded up] each, in the cell's order.
        output: [B, H], where its output goes unless another place comes with each step.
        kernel: what runs it.
        turns: the kernel's arguments where the first set of rows is read, and where the second is.
    """

    def __init__(self, link: Link, streams: int, x: int, threads: int) -> None:
        self.link, cell = link, link.layer.cell
        self._problem = link.problem(streams, link.threads(streams, threads))  # the arguments point into it
        self.kernel = self._problem.infer
        dtype = link.layer.initial[0].dtype
        self.states = [_aligned(2, streams, self._problem.width, dtype=dtype) for _ in cell.states]
        self.output = _aligned(streams, link.layer.hidden, dtype=dtype)
        rows = dict(zip(SLOTS, self._problem.rows.values, strict=True))
        same = link.values(self._problem) | rows | {"begun": 1, "x": x, self._output: self.output.ctypes.data}
        self.turns = [
            self.kernel.prepared(same | self._rows("states", turn) | self._rows("final", 1 - turn)) for turn in range(2)
        ]

    @property
    def _output(self) -> str:
        return f"y.{self.link.layer.cell.states[0]}"

    def _rows(self, kind: str, which: int) -> dict[str, int]:
        names = self.link.layer.cell.states
        return {f"{kind}.{name}": state[which].ctypes.data for name, state in zip(names, self.states, strict=True)}

    @property
    def row(self) -> tuple[int, int, int]:
        """The stage as a link of a `Chain`."""
        even, odd = map(ctypes.addressof, self.turns)
        return self.kernel.entry("advance"), even, odd

    @property
    def slots(self) -> tuple[int, int]:
        """Where its arguments have the input and the output."""
        return self.kernel.slot("x"), self.kernel.slot(self._output)


class Streams:
    """What a number of streams remember, and the chain that takes them a step further.

    Args:
        links: the layers, the lowest first.
        dtype: of all numbers.
        shape: of the input: [B, I], or [I] for a single stream.
        threads: how many to use at most.

    Attributes:
        shape: of the input.
        count: B.
        chain: runs all layers once.
    """

    def __init__(self, links: Sequence[Link], dtype: np.dtype, shape: tuple[int, ...], threads: int) -> None:
        self.shape, self.count = shape, shape[0] if len(shape) == 2 else 1
        self._stages: list[Stage] = []
        for link in links:
            x = self._stages[-1].output.ctypes.data if self._stages else 0
            self._stages.append(Stage(link, self.count, x, threads))
        first, last = self._stages[0], self._stages[-1]
        shapes = (shape, (*shape[:-1], last.link.layer.hidden))
        rows = [stage.row for stage in self._stages]
        self.chain = Chain(rows, first.slots[0], last.slots[1], shapes, dtype, self._stages)
        self.reset(np.arange(self.count))

    def _states(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each state that the next step reads, [B, H], beside its initial value [H]."""
        turn = self.chain.turn
        for stage in self._stages:
            layer = stage.link.layer
            if layer.remembers:
                for state, initial in zip(stage.states, layer.initial, strict=True):
                    yield state[turn, :, : layer.hidden], initial

    def reset(self, rows: np.ndarray) -> None:
        """Let the streams of some rows begin anew."""
        for state, initial in self._states():
            state[rows] = initial

    def read(self) -> list[np.ndarray]:
        """Copies of the states [B, H] of all layers."""
        return [state.copy() for state, _ in self._states()]

    def write(self, states: Sequence[np.ndarray]) -> None:
        """Take these states, as `read` returns them."""
        for (state, _), given in zip(self._states(), states, strict=True):
            state[:] = given
