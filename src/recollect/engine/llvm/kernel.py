"""What the forward and the backward kernel share: arguments, threads, the walk through time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from recollect.engine.llvm.denormals import flushed
from recollect.engine.llvm.rows import SLOTS
from recollect.engine.llvm.tiling import Tiling
from recollect.engine.llvm.values import I64, POINTER, VOID, Emitter, Value
from recollect.engine.plan import Plan

# Slots that every kernel begins with: those of the rows, the team, and who does what. ``block_rows`` [blocks][3] says
# where blocks of batch rows begin and end, and in which row their states begin; each thread has some blocks that follow
# each other in that table.
COMMON = (
    *SLOTS,
    "threads", "parallel", "thread_num", "num_threads", "yield_thread", "meeting",
    "inputs", "hidden", "width", "blocks", "block_rows", "by_units", "backward_in_time",
)  # fmt: skip
_MANY_WEIGHTS = 1 << 18  # copied in about the time that it takes to wake a thread on a busy machine
APART = 16  # integers: two cache lines, which some machines fetch together
_SPINS = 100  # a few microseconds
_MANY_ZEROS = 1 << 20  # numbers, more than the caches near a core hold


class Kernel:
    """Names of the argument slots and the module that is being written."""

    def __init__(self, tiling: Tiling, slots: Sequence[str]) -> None:
        self.tiling, self.products = tiling, tiling.products
        self.slots = (*COMMON, *slots)
        self.module = ir.Module()
        self._barrier: ir.Function | None = None

    def function(self, name: str, *types: ir.Type) -> Emitter:
        made = ir.Function(self.module, ir.FunctionType(VOID, types), name)
        made.linkage = "internal"
        return Emitter(made, self.tiling.dtype, self.tiling.lanes)

    def slot(self, e: Emitter, name: str) -> Value:
        """An integer argument."""
        return e.load_integer(e.arguments[0], self.slots.index(name))

    def pointer(self, e: Emitter, name: str) -> Value:
        """A pointer argument."""
        return Value(e.builder, e.builder.inttoptr(self.slot(e, name).ir, POINTER))

    def _threads_to_pack(self, e: Emitter, gates: int) -> Value:
        """Threads worth waking to lay out the weights: one, unless they are large."""
        weights = (self.slot(e, "inputs") + self.slot(e, "hidden")) * self.slot(e, "hidden") * gates
        return e.choose(weights < _MANY_WEIGHTS, e.integer(1), self.slot(e, "threads"))

    def set_slot(self, e: Emitter, name: str, value: Value) -> None:
        """Change an integer argument, for the stages that run after."""
        e.store_integer(value, e.arguments[0], self.slots.index(name))

    def entry(self, name: str) -> Emitter:
        """Begin the function that is called from outside, with the argument array."""
        e = self.function(name, POINTER)
        e.function.linkage = "external"
        return e

    def run(self, e: Emitter, stage: Emitter, threads: Value) -> None:
        """From an entry, run a stage ``(arguments, thread, threads)``, on a team if there are several threads.

        The end of a stage is a barrier: what follows begins when all threads are through. Denormal numbers count as
        0 in it.
        """
        stage.function.attributes.add("noinline")
        with e.builder.if_else((threads <= 1).ir) as (one, many):
            with one, flushed(e, self.tiling.mode_register):
                e.call(stage.function, e.arguments[0], e.integer(0), e.integer(1))
            with many:
                i32 = ir.IntType(32)
                kind = ir.FunctionType(VOID, [POINTER, POINTER, i32, i32])
                count = e.builder.trunc(threads.ir, i32)
                region = self._region(stage)
                e.call_address(self.slot(e, "parallel"), kind, region, e.arguments[0].ir, count, ir.Constant(i32, 0))

    def write_entries(self, name: str, pack: Emitter, stage: Emitter, gates: int) -> None:
        """The entries that pack the weights, that go through the steps, and that do both (``name``).

        Both in one region, so that its threads wake up while one of them packs. The halves are for who goes on step by
        step, or chunk by chunk, and packs once.
        """
        both = self.stage("both")
        for part in (pack, stage):
            part.function.attributes.add("noinline")
        arguments, thread, threads = both.arguments
        packing = both.least(self._threads_to_pack(both, gates), threads)
        with both.when(thread < packing):
            both.call(pack.function, arguments, thread, packing)
        self.barrier(both)
        both.call(stage.function, arguments, thread, threads)
        both.builder.ret_void()
        for entry, its in (("pack_weights", pack), ("advance", stage), (name, both)):
            e = self.entry(entry)
            self.open_meeting(e)
            self.run(e, its, self._threads_to_pack(e, gates) if its is pack else self.slot(e, "threads"))
            e.builder.ret_void()

    def _region(self, stage: Emitter) -> ir.Function:
        """What a thread of the team calls: it asks which one it is and of how many (the team it got)."""
        e = self.function(f"{stage.function.name}_region", POINTER)
        i32 = ir.IntType(32)
        who = []
        for name in ("thread_num", "num_threads"):
            number = e.call_address(self.slot(e, name), ir.FunctionType(i32, []))
            who.append(Value(e.builder, e.builder.sext(number.ir, I64)))
        with flushed(e, self.tiling.mode_register):
            e.call(stage.function, e.arguments[0], *who)
        e.builder.ret_void()
        return e.function

    def stage(self, name: str) -> Emitter:
        """Begin a function ``(arguments, thread, threads)``."""
        return self.function(name, POINTER, I64, I64)

    def open_meeting(self, e: Emitter) -> None:
        """In an entry, make what `barrier` needs: two counters, on cache lines of their own."""
        place = e.builder.alloca(I64, ir.Constant(I64, 2 * APART))
        meeting = Value(e.builder, e.builder.bitcast(place, POINTER))
        for counter in (0, APART):
            e.store_integer(e.integer(0), meeting, counter)
        self.set_slot(e, "meeting", Value(e.builder, e.builder.ptrtoint(place, I64)))

    def barrier(self, e: Emitter) -> None:
        """Within a stage, go on when all threads of the team have come here."""
        if self._barrier is None:
            self._barrier = self._write_barrier()
        e.call(self._barrier, e.arguments[0], e.arguments[2])

    def _write_barrier(self) -> ir.Function:
        """The last to come begins a new generation; the others look for it, at first without giving way."""
        e = self.function("barrier", POINTER, I64)
        e.function.attributes.add("noinline")
        build, threads, meeting = e.builder, e.arguments[1], self.pointer(e, "meeting")
        arrived, generation = (e.integer_at(meeting, counter) for counter in (0, APART))
        now = e.load_acquired(generation)
        before = Value(build, build.atomic_rmw("add", arrived.ir, e.integer(1).ir, "acq_rel"))
        with build.if_else((before + 1).compare("==", threads).ir) as (last, others):
            with last:
                build.atomic_rmw("xchg", arrived.ir, e.integer(0).ir, "monotonic")
                build.atomic_rmw("add", generation.ir, e.integer(1).ir, "release")
            with others:
                self.return_when(e, lambda: e.load_acquired(generation).compare("!=", now))
        build.ret_void()
        return e.function

    def return_when(self, e: Emitter, met: Callable[[], Value]) -> None:
        """In a function that waits for another thread: look until that is ``met``, at first without giving way."""
        with e.loop(0, 1 << 62) as turn:
            with e.when(met()):
                e.builder.ret_void()
            if self.tiling.pause:
                e.call_llvm(self.tiling.pause, VOID)
            # Where a thread of the team is not running, whoever waits for it hands it the core.
            with e.when(turn > _SPINS):
                e.call_address(self.slot(e, "yield_thread"), ir.FunctionType(ir.IntType(32), []))


@dataclass(frozen=True)
class Step:
    """One step of a walk through time.

    Attributes:
        index: which step of the walk it is, from 0.
        row, active: where the step's rows begin, and how many there are.
        row_next, active_next: the same of the step that the walk takes next; 0 rows after the last.
        active_before: rows of the step that the walk took before; 0 before the first.
    """

    index: Value
    row: Value
    active: Value
    row_next: Value
    active_next: Value
    active_before: Value


@contextmanager
def walk(e: Emitter, kernel: Kernel, begin: Value | int, end: Value, *, descending: Value) -> Iterator[Step]:
    """``for step in the steps [begin, end) of a walk``, from the first time to the last or ``descending``."""
    steps, offsets = kernel.slot(e, "steps"), kernel.pointer(e, "offsets")

    def rows(index: Value) -> tuple[Value, Value]:
        t = e.choose(descending, steps - 1 - index, index)
        start = e.load_integer(offsets, t)
        return start, e.load_integer(offsets, t + 1) - start

    with e.loop(begin, end) as index:
        row, active = rows(index)
        first, last = index.compare("==", 0), index.compare("==", steps - 1)
        _, before = rows(e.choose(first, index, index - 1))
        row_next, after = rows(e.choose(last, index, index + 1))
        zero = e.integer(0)
        yield Step(index, row, active, row_next, e.choose(last, zero, after), e.choose(first, zero, before))


def rows_of_steps(e: Emitter, kernel: Kernel, begin: Value, end: Value, *, descending: Value) -> tuple[Value, Value]:
    """The first row of the steps [begin, end) of a walk, and the one after the last; all between are theirs."""
    steps, offsets = kernel.slot(e, "steps"), kernel.pointer(e, "offsets")
    first, last = e.choose(descending, steps - end, begin), e.choose(descending, steps - begin, end)
    return e.load_integer(offsets, first), e.load_integer(offsets, last)


@contextmanager
def there_and_back(e: Emitter, first: Value, last: Value, turn: Value) -> Iterator[Value]:
    """``for index in range(first, last)``, in odd turns from the last to the first.

    What a step has read last the next one reads first, while a cache still has it.
    """
    back = (turn & 1).compare("!=", 0)
    with e.loop(first, last) as index:
        yield e.choose(back, last - 1 - (index - first), index)


SLAB = 16  # blocks of rows whose sums a thread holds at once: with those of the widest tile, 16 KiB


class Share:
    """What a thread does of a step: some of the rows, or some of the units of all rows.

    Rows need no word between the threads. Units (the slot ``by_units``) need a `Kernel.barrier` in each step,
    and are for the case in which the weights, rather than the arithmetic, take the time: each thread reads its
    own part of them only.

    Args:
        e: a stage's function, at its beginning.

    Attributes:
        by_units: it is some of the units.
        count: blocks of rows.
    """

    def __init__(self, e: Emitter, kernel: Kernel) -> None:
        thread, threads = e.arguments[1], e.arguments[2]
        self.by_units = kernel.slot(e, "by_units").compare("!=", 0)
        zero, one = e.integer(0), e.integer(1)
        row_thread, row_threads = e.choose(self.by_units, zero, thread), e.choose(self.by_units, one, threads)
        self._unit_thread, self._unit_threads = (
            e.choose(self.by_units, thread, zero),
            e.choose(self.by_units, threads, one),
        )
        blocks = kernel.slot(e, "blocks")
        each = (blocks + row_threads - 1) // row_threads
        self._first = e.least(row_thread * each, blocks)
        self.count = e.least(self._first + each, blocks) - self._first
        self._table = kernel.pointer(e, "block_rows")

    def of_units(self, count: Value) -> tuple[Value, Value]:
        """The range of ``count`` groups of units that is this thread's: neighbours, which share cache lines."""
        first = self._unit_thread * count // self._unit_threads
        return first, (self._unit_thread + 1) * count // self._unit_threads

    @contextmanager
    def rows(self, e: Emitter, active: Value) -> Iterator[tuple[Value, Value, Value]]:
        """``for (first row, rows, first row of states) in the blocks of rows that are this thread's``."""
        with self.blocks(e, active) as (_, start, rows, states):
            yield start, rows, states

    @contextmanager
    def blocks(self, e: Emitter, active: Value) -> Iterator[tuple[Value, Value, Value, Value]]:
        """The same with which block it is before the others."""
        with e.loop(0, self.count) as block:
            yield block, *self._rows(e, block, active)

    @contextmanager
    def slabs(self, e: Emitter) -> Iterator[Slab]:
        """The same blocks, a slab of them at a time."""
        with e.loop(0, self.count, SLAB) as first:
            yield Slab(self, first, e.least(self.count - first, e.integer(SLAB)))

    def _rows(self, e: Emitter, block: Value, active: Value) -> tuple[Value, Value, Value]:
        at = (self._first + block) * 3
        start, end, states = (e.load_integer(self._table, at + column) for column in range(3))
        return start, e.least(end, active) - start, states


@dataclass(frozen=True)
class Slab:
    """Some of a thread's blocks of rows, from the ``first`` of them on."""

    share: Share
    first: Value
    count: Value

    @contextmanager
    def rows(self, e: Emitter, active: Value) -> Iterator[tuple[Value, Value, Value, Value]]:
        """``for (which of the slab's, first row, rows, first row of states) in the blocks``."""
        with e.loop(0, self.count) as index:
            yield index, *self.share._rows(e, self.first + index, active)


def pack_vectors(e: Emitter, kernel: Kernel, plan: Plan) -> None:
    """Copy the per-unit parameters to rows of whole vectors, by the first thread."""
    hidden, width = kernel.slot(e, "hidden"), kernel.slot(e, "width")
    packed = kernel.pointer(e, "packed_vectors")
    with e.when(e.arguments[1].compare("==", 0)):
        for place, name in enumerate(plan.vectors):
            source = kernel.pointer(e, f"vector.{name}")
            with e.loop(0, width, e.lanes) as unit:
                e.store(e.load_masked(e.mask(hidden - unit), source, unit), packed, width * place + unit)


def clear_padding(e: Emitter, kernel: Kernel, results: Sequence[str], length: str) -> None:
    """Write zeros to the rows of results that are padding; each thread takes some.

    Where they are many, past the caches: a line is not read first then, and what the caches hold stays there.

    Args:
        results: the slots of their addresses.
        length: the slot of the length of their rows.
    """
    places, first, end = kernel.pointer(e, "places"), kernel.slot(e, "rows"), kernel.slot(e, "all_rows")
    pointers, columns = [kernel.pointer(e, name) for name in results], kernel.slot(e, length)
    misfit = columns * e.size
    for name in results:
        misfit |= kernel.slot(e, name)
    of_whole_vectors = (misfit & (e.lanes * e.size - 1)).compare("==", 0)
    past_caches = of_whole_vectors & ((end - first) * columns > _MANY_ZEROS)

    @contextmanager
    def vectors() -> Iterator[tuple[Value, Value]]:
        with e.loop(first + e.arguments[1], end, e.arguments[2]) as row:
            start = e.load_integer(places, row) * columns
            with e.loop(0, columns, e.lanes) as column:
                yield column, start + column

    with e.when(past_caches):
        with vectors() as (_, at):
            for pointer in pointers:
                e.store_past_caches(e.zeros(), pointer, at)
        e.builder.fence("seq_cst")  # such stores keep no order with others
    with e.when(~past_caches), vectors() as (column, at):
        for pointer in pointers:
            e.store_masked(e.zeros(), e.mask(columns - column), pointer, at)


def given_slots(plan: Plan) -> tuple[str, ...]:
    """The argument slots of what a call gives: ``resets``, an integer for each row, and numbers with strides.

    The number of a given leaf for a row is at ``its place * by_step + row of B * by_row``, so that one kernel
    serves numbers for every step (in the layout of x), for every sequence ([B, H]) and for the layer ([H]).
    """
    numbers = (slot for leaf in plan.given for slot in (leaf, f"{leaf}.by_step", f"{leaf}.by_row"))
    return (*numbers, *(("resets",) if plan.resets else ()))


def load_given(
    e: Emitter, kernel: Kernel, plan: Plan, place: Value, row: Value, unit: Value, mask: Value
) -> dict[str, Value]:
    """A vector of each given leaf."""
    found = {}
    for leaf in plan.given:
        by_step, by_row = (kernel.slot(e, f"{leaf}.{stride}") for stride in ("by_step", "by_row"))
        at = place * by_step + row * by_row + unit
        found[leaf] = e.load_masked(mask, kernel.pointer(e, leaf), at)
    return found
