"""A layer and direction of given sizes: all that a call of a kernel needs but the addresses.

Kept from call to call, so that what is left to do for each is to fill in addresses and the rows (`rows.py`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from struct import Struct
from typing import Any

import numpy as np

from recollect.engine.llvm import backward, forward
from recollect.engine.llvm.division import Division
from recollect.engine.llvm.kernel import SLAB
from recollect.engine.llvm.kernels import Function, Kernels
from recollect.engine.llvm.once import cached_property
from recollect.engine.llvm.rows import Rows
from recollect.engine.llvm.team import Team
from recollect.engine.llvm.tiling import WIDE, Tiling, round_up
from recollect.engine.llvm.values import SIZE

_PAGE = 4096  # bytes
# Bytes of weights that a thread goes through in a step, beyond which it waits although processors read ahead.
_FAR = 1 << 22
# Rows whose inputs are multiplied at once. Measured: from 12 to 72 it is all the same, within 3 %.
_PROJECTED_ROWS, _PROJECTED_SHARE = 36, 4
_LINE = 16  # numbers; parts of a buffer begin on a cache line of their own


class Parts:
    """How a buffer is divided.

    Attributes:
        starts: where each part begins, in numbers.
        total: numbers in the buffer.
        room: the same in eighths of a power of two, so that neighbouring sizes share memory and at most an eighth of it
            is unused.
    """

    def __init__(self, *counts: int) -> None:
        *self.starts, self.total = accumulate((round_up(count, _LINE) for count in counts), initial=0)
        self.room = round_up(self.total, max(1024, 1 << max(0, self.total.bit_length() - 3)))
        self._offsets = {itemsize: [start * itemsize for start in self.starts] for itemsize in set(SIZE.values())}

    def addresses(self, begin: int, itemsize: int) -> list[int]:
        """Where each part begins of a buffer that begins at that address, with so many bytes a number."""
        return list(map(begin.__add__, self._offsets[itemsize]))


class Pass:
    """A kernel with the arguments that sizes decide.

    Args:
        function: the kernel.
        sizes: value of each slot that is a size; the others are addresses.
        names: the slots that `arguments` takes, which are the last ones.
        parts: how its scratch memory is divided.

    Attributes:
        scratch: memory for that of which no call makes use now, or None; see `buffers.Buffer.scratch`.
    """

    def __init__(self, function: Function, sizes: dict[str, int], names: Sequence[str], parts: Parts) -> None:
        self._function, self.parts = function, parts
        self.scratch: list[Any] | None = None
        kind = ctypes.c_int64 * len(function.slots)
        self._template = kind(*(sizes.get(slot, 0) for slot in function.slots))
        self._begin = 8 * (len(function.slots) - len(names))  # bytes
        self._copy, self._write = kind.from_buffer_copy, Struct(f"{len(names)}q").pack_into

    def prepared(self, values: Mapping[str, int]) -> ctypes.Array[ctypes.c_int64]:
        """Arguments with the values of some slots by name, for who keeps them and calls an `entry`."""
        arguments = self._copy(self._template)
        for name, value in values.items():
            arguments[self.slot(name)] = value
        return arguments

    def slot(self, name: str) -> int:
        """Where an argument is."""
        return self._function.slots.index(name)

    def entry(self, name: str) -> int:
        """The address of one of the kernel's entries, which take the address of its arguments."""
        return self._function.entry(name)

    @property
    def address(self) -> int:
        """The kernel's."""
        return self._function.address

    def arguments(self, addresses: Sequence[int], rows: Sequence[int] = ()) -> ctypes.Array[ctypes.c_int64]:
        """The kernel's arguments; ``rows`` are the `Rows.values` of a kernel that has some."""
        arguments = self._copy(self._template)
        arguments[: len(rows)] = rows
        self._write(arguments, self._begin, *addresses)  # of another number it would raise
        return arguments

    @cached_property
    def halves(self) -> tuple[int, int]:
        """The addresses of what packs and of what goes through steps, kept: LLVM is asked for one under a lock."""
        return self.entry("pack_weights"), self.entry("advance")

    def run(self, arguments: ctypes.Array[ctypes.c_int64]) -> None:
        """Run the kernel."""
        self._function.run(arguments)


class Problem:
    """One layer in one direction, of given sizes; without `rows` until it goes `along` some.

    Args:
        kernels: of its cell and dtype.
        inputs, hidden: I and H.
        batch: B.
        unequal: rows end at different steps.
        longest: T at most.
        reverse: backward in time.
        division: the threads, and what each of them does.
        team: where they come from.
        apart: whether the states of different threads lie apart; where the caller provides their memory they do not.

    Attributes:
        rows: which it goes along.
        width: row length of final states.
        grad_width: row length of gradients of states.
        gates: G * H.
        gate_columns: numbers in the sums over rows for the biases of one side, ``gates`` or one more.
        columns: numbers in the sums over rows.
        sums: ``columns``, rounded up to whole vectors.
        zeros: the address of a state [B, H] of zeros, which nobody writes to.
    """

    def __init__(
        self,
        kernels: Kernels,
        inputs: int,
        hidden: int,
        batch: int,
        unequal: bool,
        longest: int,
        reverse: bool,
        division: Division,
        team: Team,
        apart: bool = True,
    ) -> None:
        self.kernels, self.plan = kernels, kernels.plan
        self.tiling = tiling = kernels.tiling(inputs, hidden)
        self.inputs, self.hidden, self.batch, self.division, self.team = inputs, hidden, batch, division, team
        self.rows: Rows
        self._unequal, self._longest, self._apart = unequal, longest, apart
        self._passes: dict[str, Pass] = {}
        self._block_rows: list[np.ndarray] = []
        self._zeros = np.zeros((batch, hidden), tiling.dtype)
        self.zeros = self._zeros.ctypes.data
        self.width = tiling.width(hidden)
        self.grad_width = max(self.width, round_up(hidden, tiling.hidden_wide * tiling.lanes))
        self.gates = len(self.plan.gates) * hidden
        self.gate_columns = backward.gate_columns(self.plan, tiling, hidden)
        self.columns = backward.chunk_columns(self.plan, tiling, hidden)
        self.sums = round_up(self.columns, WIDE * tiling.lanes)
        self._common = {
            **team.slots, "threads": division.threads,
            "inputs": inputs, "hidden": hidden, "width": self.width, "backward_in_time": int(reverse),
        }  # fmt: skip

    @property
    def forward_tiling(self) -> Tiling:
        """That of the forward pass, which decides how weights are packed."""
        return self.tiling.for_one_row() if self.batch == 1 else self.tiling

    def along(self, rows: Rows) -> Problem:
        """The same for some rows, as a new object that shares everything else."""
        made = Problem.__new__(Problem)
        made.__dict__.update(self.__dict__, rows=rows)
        return made

    def _shares(self, division: Division, tile_rows: int, apart: int = 0) -> dict[str, int]:
        """Who does what: units, or blocks of batch rows, as many as tiles need and as many for each thread.

        Those of different threads have states that lie ``apart`` rows.
        """
        table = _deal(self.batch, tile_rows, division.row_threads, apart, self._unequal)
        self._block_rows.append(table)  # the kernel's arguments point to it
        return {"by_units": int(division.by_units), "blocks": len(table), "block_rows": table.ctypes.data}

    @property
    def bytes_per_step(self) -> int:
        """What a step of all rows adds to the memory that `kept` divides."""
        return self.batch * self.width * (len(self.plan.states) + self.plan.saved) * SIZE[self.tiling.dtype]

    def _fetching(self, division: Division, blocks: int, weights: int) -> bool:
        """Whether tiles fetch so many packed weights ahead: where these are many, for several blocks of rows."""
        of_thread = weights * SIZE[self.tiling.dtype] // (division.threads if division.by_units else 1)
        return blocks > division.row_threads and of_thread > _FAR

    def _piece(self, division: Division, blocks: int, vectors: int, count: int) -> int:
        """How many k to take at once: all of them where no second block of rows would find them in the cache."""
        return self.tiling.piece(vectors) if blocks > division.row_threads else count

    def _projected_steps(self, tile_rows: int) -> int:
        """Of how many steps the forward pass multiplies the inputs at once; 0 where each step does.

        Where the rows of a step fill few tiles, its weights take the time. Those of the inputs are then worth sparing
        where they are not few beside the others, the less so the more rows make use of them.
        """
        few = self.batch < 2 * tile_rows and self.batch * self.hidden <= _PROJECTED_SHARE * self.inputs
        if self.tiling.bfloat16 or self.division.row_threads > 1 or self._longest == 1 or not few:
            return 0
        return min(self._longest, _PROJECTED_ROWS // self.batch)

    def _made(self, name: str, make: Callable[[], Pass]) -> Pass:
        """A pass, made at first use for whatever rows."""
        found = self._passes.get(name)
        if found is None:
            found = self._passes[name] = make()
        return found

    @property
    def infer(self) -> Pass:
        """The forward pass alone.

        Addresses: ``x w_ih w_hh b_ih b_hh packed_vectors packed_bias packed``, one of ``states`` and then one of
        ``kept`` for each state, ``saved``, then ``y`` of each output, ``initial`` and ``final`` of each state, the
        vectors and what the call gives (`given_slots`). Parts of its memory: from ``packed_vectors`` to ``states``,
        then ``projected``, or with bfloat16 ``rounded``, which is another address.
        """
        return self._made("infer", lambda: self._forward(save=False))

    @property
    def train(self) -> Pass:
        """The forward pass that keeps what `backward` reads in `kept`; addresses and parts as for `infer`."""
        return self._made("train", lambda: self._forward(save=True))

    @cached_property
    def kept(self) -> Parts:
        """How the memory is divided in which `train` leaves what `backward` reads: of each state, and ``saved``."""
        each = self.width * self.rows.count
        return Parts(*[each for _ in self.plan.states], each * self.plan.saved)

    def _forward(self, *, save: bool) -> Pass:
        plan, tiling, width, division = self.plan, self.forward_tiling, self.width, self.division
        threads = division.row_threads
        inputs, hidden = tiling.terms(self.inputs), tiling.terms(self.hidden)
        per_unit = inputs * len(plan.input_gates) + hidden * len(plan.recurrent_gates)
        page = _PAGE // SIZE[tiling.dtype]  # no processor reads ahead beyond
        apart = -(-page // width) if threads > 1 and self._apart else 0
        rows_of_set = self.batch + threads * apart
        vectors = plan.widest_run * tiling.unit_vectors
        tile_rows = tiling.rows(vectors)
        shares = self._shares(division, tile_rows, apart)
        blocks = shares["blocks"]
        # The rows of x and h that a thread rounds: those of a slab. The last vector of h is whole.
        length = tiling.spread(inputs + round_up(hidden, tiling.lanes))
        of_thread = min(SLAB, blocks) * tile_rows * length + page
        ahead = self._projected_steps(tile_rows)
        parts = Parts(
            width * len(plan.vectors),
            width * len(plan.accumulators),
            width * per_unit,
            *(2 * width * rows_of_set for _ in plan.states),
            division.threads * of_thread if tiling.bfloat16 else ahead * self.batch * width * len(plan.accumulators),
        )
        piece = self._piece(division, blocks, vectors, inputs + hidden)
        sizes = self._common | shares | {
            "rows_of_set": rows_of_set, "piece": piece, "rounded_length": length, "rounded_of_thread": of_thread,
            "projected_steps": ahead,
        }  # fmt: skip
        fetching = self._fetching(division, blocks, width * per_unit)
        return Pass(
            self.kernels.forward(tiling, save=save, fetching=fetching), sizes, forward.addresses(plan, tiling), parts
        )

    @property
    def backward(self) -> Pass:
        """The backward pass.

        Addresses: ``x dx w_ih w_hh dw_ih dw_hh sums``, what the forward pass ``kept`` of each state and
        ``saved``, ``dy`` and then ``dy_stride`` of each output, ``grad`` (and ``restart``, where there are
        resets) of each state, the vectors, what the call gives, then ``packed_vectors chunk packed_ih
        packed_hh`` and with bfloat16 ``paired``, which are the parts of its memory. ``dx``, ``dw_ih`` and
        ``dw_hh`` may be 0: not wanted. ``dy_stride`` is H, or 0 where ``dy`` is one row of zeros for all.
        """
        return self._made("backward", lambda: self._backward(watched=False))

    @property
    def watched_backward(self) -> Pass:
        """The backward pass that also leaves dL/ds of each state at each step in the parts of `leaving`.

        Addresses: as for `backward`, but before ``packed_vectors`` where the gradient of each state goes.
        """
        return self._made("watched_backward", lambda: self._backward(watched=True))

    @cached_property
    def leaving(self) -> Parts:
        """How the memory is divided in which `watched_backward` leaves what it does: of each state [N, width]."""
        return Parts(*[self.width * self.rows.count for _ in self.plan.own_states])

    def _backward(self, *, watched: bool) -> Pass:
        plan, tiling, division = self.plan, self.tiling, self.division.back
        stride, paired_stride = (of(tiling, self.columns) for of in (backward.chunk_stride, backward.paired_stride))
        chunk_steps = min(self._longest, max(1, backward.chunk_rows(tiling, self.columns) // self.batch))
        rows, gates = chunk_steps * self.batch, tiling.terms(self.gates)
        parts = Parts(
            self.width * len(plan.vectors),
            rows * stride + WIDE * tiling.lanes,  # the last panel may look past a row
            round_up(self.inputs, tiling.input_wide * tiling.lanes) * gates,
            round_up(self.hidden, tiling.hidden_wide * tiling.lanes) * gates,
            *((tiling.terms(rows) * paired_stride,) if tiling.bfloat16 else ()),
        )
        shares = self._shares(division, tiling.rows(tiling.hidden_wide))
        piece = self._piece(division, shares["blocks"], tiling.hidden_wide, gates)
        sizes = self._common | shares | {
            "piece": piece, "chunk_steps": chunk_steps, "chunk_stride": stride, "paired_stride": paired_stride,
            "columns": self.columns, "grad_width": self.grad_width,
        }  # fmt: skip
        names = backward.addresses(plan, tiling, watched=watched)
        fetching = self._fetching(division, shares["blocks"], self.hidden * gates)
        return Pass(self.kernels.backward(tiling, watched=watched, fetching=fetching), sizes, names, parts)


@lru_cache(maxsize=128)
def _deal(batch: int, tile_rows: int, threads: int, apart: int, unequal: bool) -> np.ndarray:
    """The table of blocks, those of each thread one after the other; ``unequal`` where rows end at different steps."""
    count = round_up(round_up(batch, tile_rows) // tile_rows, threads)
    starts = np.arange(count + 1, dtype=np.int64) * batch // count
    rows = np.stack([starts[:-1], starts[1:]], axis=1)
    if unequal:
        # Blocks are dealt out in turn, and every other time in the opposite order (0 1 1 0 0 1), so that each thread
        # gets as many long ones and short ones. Neighbours are better otherwise: a core that reads ahead then seldom
        # takes what another one writes.
        deal = np.arange(count).reshape(-1, threads)
        deal[1::2] = deal[1::2, ::-1].copy()
        rows = rows[deal.T.ravel()]
    counts = rows[:, 1] - rows[:, 0]
    states = np.cumsum(counts) - counts + np.arange(count) // (count // threads) * apart
    return np.column_stack([rows, states])


def most_memory(kernels: Kernels, inputs: int, hidden: int, rows: Any) -> Any:
    """Numbers that `Problem.kept` does not exceed with so many rows, which may be a symbol."""
    plan, width = kernels.plan, kernels.tiling(inputs, hidden).width(hidden)
    return width * rows * (len(plan.states) + plan.saved) + _LINE * (len(plan.states) + 1)
