"""What the forward and the backward kernel share: arguments, threads, the walk through time, the tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from recollect.engine.llvm.machine import Machine
from recollect.engine.llvm.values import I64, POINTER, SIZE, VOID, Emitter, Value
from recollect.engine.plan import Plan

# Slots that every kernel begins with: the team, and the layout of the rows. ``offsets`` [T + 1] says where the
# rows of each step begin; blocks of batch rows are dealt to the threads in turn.
COMMON = (
    "threads", "parallel", "thread_num", "num_threads",
    "steps", "batch", "inputs", "hidden", "width", "blocks", "backward_in_time", "offsets", "w_ih", "w_hh",
)  # fmt: skip
_MANY_WEIGHTS = 1 << 18  # copied in about the time that it takes to wake a thread on a busy machine
WIDE = 4  # vectors side by side in a tile, where the matrix is that wide


@dataclass(frozen=True)
class Tiling:
    """How a plan is cut into tiles on a machine, for one dtype.

    A *unit block* is ``unit_vectors`` vectors of hidden units; a tile of the forward pass holds all
    accumulators of one unit block for some batch rows in registers. The products of the backward pass are
    cut into panels of ``wide`` vectors.

    Attributes:
        dtype, lanes: numbers and how many of them are in a vector.
        registers: accumulators that fit into registers.
        unit_vectors: vectors in a unit block.
        hidden_wide, input_wide: vectors in a panel of H and of I columns.
    """

    dtype: str
    lanes: int
    registers: int
    unit_vectors: int
    hidden_wide: int
    input_wide: int

    @property
    def block(self) -> int:
        """Units in a unit block."""
        return self.unit_vectors * self.lanes

    @property
    def masks_are_free(self) -> bool:
        """Whether a loop can load through masks at no cost: AVX-512 (vectors of 64 bytes) has registers for them."""
        return self.lanes * SIZE[self.dtype] == 64

    def rows(self, vectors: int) -> int:
        """The tallest tile of so many vectors."""
        return max(1, min(8, self.registers // vectors))

    def width(self, hidden: int) -> int:
        """H rounded up to whole unit blocks: the row length of states and saved values."""
        return round_up(hidden, self.block)


def round_up(count: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return -(-count // unit) * unit


def make_tiling(plan: Plan, machine: Machine, dtype: str, inputs: int, hidden: int) -> Tiling:
    """Choose tiles: about four vectors wide, and as many rows as registers allow."""
    lanes = machine.lanes(dtype)

    def panel(count: int) -> int:
        vectors = round_up(count, lanes) // lanes
        return min(range(min(WIDE, vectors), 0, -1), key=lambda wide: round_up(vectors, wide))

    return Tiling(
        dtype=dtype,
        lanes=lanes,
        registers=machine.accumulators,
        unit_vectors=max(1, min(WIDE // len(plan.accumulators), round_up(hidden, lanes) // lanes)),
        hidden_wide=panel(hidden),
        input_wide=panel(inputs),
    )


class Kernel:
    """Names of the argument slots and the module that is being written."""

    def __init__(self, tiling: Tiling, slots: Sequence[str]) -> None:
        self.tiling = tiling
        self.slots = (*COMMON, *slots)
        self.module = ir.Module()

    def function(self, name: str, *types: ir.Type) -> Emitter:
        made = ir.Function(self.module, ir.FunctionType(VOID, types), name)
        made.linkage = "internal"
        return Emitter(made, self.tiling.dtype, self.tiling.lanes)

    def slot(self, e: Emitter, name: str) -> Value:
        """An integer argument."""
        arguments = e.arguments[0]
        return e.load_integer(arguments, e.integer(self.slots.index(name)))

    def pointer(self, e: Emitter, name: str) -> Value:
        """A pointer argument."""
        return Value(e.builder, e.builder.inttoptr(self.slot(e, name).ir, POINTER))

    def threads_to_pack(self, e: Emitter, gates: int) -> Value:
        """Threads worth waking to lay out the weights: one, unless they are large."""
        weights = (self.slot(e, "inputs") + self.slot(e, "hidden")) * self.slot(e, "hidden") * gates
        return e.choose(weights < _MANY_WEIGHTS, e.integer(1), self.slot(e, "threads"))

    def set_slot(self, e: Emitter, name: str, value: Value) -> None:
        """Change an integer argument, for the stages that run after."""
        place = e.builder.gep(e.arguments[0].ir, [e.integer(self.slots.index(name)).ir], source_etype=I64)
        e.builder.store(value.ir, place)

    def entry(self, name: str) -> Emitter:
        """Begin the function that is called from outside, with the argument array."""
        e = self.function(name, POINTER)
        e.function.linkage = "external"
        return e

    def run(self, e: Emitter, stage: Emitter, threads: Value) -> None:
        """From an entry, run a stage ``(arguments, thread, threads)``, on a team if there are several threads.

        The end of a stage is a barrier: what follows begins when all threads are through.
        """
        with e.builder.if_else((threads <= 1).ir) as (one, many):
            with one:
                e.call(stage.function, e.arguments[0], e.integer(0), e.integer(1))
            with many:
                i32 = ir.IntType(32)
                kind = ir.FunctionType(VOID, [POINTER, POINTER, i32, i32])
                count = e.builder.trunc(threads.ir, i32)
                region = self._region(stage)
                e.call_address(self.slot(e, "parallel"), kind, region, e.arguments[0].ir, count, ir.Constant(i32, 0))

    def _region(self, stage: Emitter) -> ir.Function:
        """What a thread of the team calls: it asks which one it is and of how many (the team it got)."""
        e = self.function(f"{stage.function.name}_region", POINTER)
        i32 = ir.IntType(32)
        who = []
        for name in ("thread_num", "num_threads"):
            number = e.call_address(self.slot(e, name), ir.FunctionType(i32, []))
            who.append(Value(e.builder, e.builder.sext(number.ir, I64)))
        e.call(stage.function, e.arguments[0], *who)
        e.builder.ret_void()
        return e.function

    def stage(self, name: str) -> Emitter:
        """Begin a function ``(arguments, thread, threads)``."""
        return self.function(name, POINTER, I64, I64)


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


@contextmanager
def own_blocks(e: Emitter, kernel: Kernel, active: Value) -> Iterator[tuple[Value, Value]]:
    """``for (first row, rows) in the blocks of rows that this thread owns``.

    Blocks are dealt out in turn, so that with rows sorted by length every thread gets long and short ones.
    """
    thread, threads = e.arguments[1], e.arguments[2]
    batch, blocks = kernel.slot(e, "batch"), kernel.slot(e, "blocks")
    with e.loop(thread, blocks, threads) as block:
        start = block * batch // blocks
        end = e.least((block + 1) * batch // blocks, active)
        yield start, end - start


@dataclass(frozen=True)
class Run:
    """One product that a tile adds: ``a[r][k] w[k][v]`` for the vectors [first, last).

    Usually k runs along a row of ``a``, and ``w`` is packed, one row of ``last - first`` vectors after the
    other. With ``transposed`` k runs over rows of both, each with its stride, and ``w`` is only as wide as
    the masked tile is told.
    """

    first: int
    last: int
    transposed: bool = False


class Tile:
    """A block of accumulators that stays in registers, written for each number of rows up to ``rows``.

    ``out[r][v] = init[r][v] + sum over runs of sum_k a[r][k] w[k][v]``

    Args:
        vectors: width of the block.
        runs: the products.
        masked: ``init`` and ``out`` are only as wide as told.
        from_zero: ``init`` is 0, whatever is passed.
        masked_loads: so is a transposed ``w``, in every row. By default that is so where it costs nothing;
            elsewhere whole vectors are read as long as what lies beyond is the next row's (those lanes are
            not stored), and the last rows are left to a tile that is one vector wide.
    """

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        vectors: int,
        runs: Sequence[Run],
        *,
        masked: bool = False,
        from_zero: bool = False,
        masked_loads: bool | None = None,
    ) -> None:
        self.rows, self.vectors = kernel.tiling.rows(vectors), vectors
        self.masked, self.from_zero = masked, from_zero
        self._masked_loads = kernel.tiling.masks_are_free if masked_loads is None else masked_loads
        self._last_rows: Tile | None = None
        if runs[0].transposed and not self._masked_loads:
            self._last_rows = Tile(
                kernel, f"{name}_last", 1, [Run(0, 1, transposed=True)], masked=True, masked_loads=True
            )
        # out, its stride, init, its stride, columns; per run: a, its stride, k, w, the stride of w.
        types = [POINTER, I64, POINTER, I64, I64] + [POINTER, I64, I64, POINTER, I64] * len(runs)
        self._functions = [
            self._write(kernel.function(f"{name}_{height}", *types), height, runs) for height in range(1, self.rows + 1)
        ]

    def _write(self, e: Emitter, height: int, runs: Sequence[Run]) -> ir.Function:
        # By itself, its loop has all registers: inlined, addresses of what surrounds it would crowd the stack.
        e.function.attributes.add("noinline")
        out, out_stride, init, init_stride, columns = e.arguments[:5]
        grid = [(r, v) for r in range(height) for v in range(self.vectors)]
        masks = [e.mask(columns - v * e.lanes) for v in range(self.vectors)] if self.masked else []

        def initial(r: int, v: int) -> Value:
            if self.from_zero:
                return e.zeros()
            at = init_stride * r + v * e.lanes
            return e.load_masked(masks[v], init, at) if self.masked else e.load(init, at)

        total = {(r, v): e.variable(e.vector, initial(r, v)) for r, v in grid}
        for index, run in enumerate(runs):
            a, a_stride, count, w, w_stride = e.arguments[5 + 5 * index : 10 + 5 * index]
            rows = [e.at(a, r if run.transposed else a_stride * r) for r in range(height)]
            with e.loop(0, count) as k:
                weights = e.at(w, k * (w_stride if run.transposed else (run.last - run.first) * e.lanes))
                place = k * a_stride if run.transposed else k
                by_mask = run.transposed and self._masked_loads
                # Loaded where first needed: those of the shorter side stay, those of the longer one pass by.
                order = [(r, v) for r in range(height) for v in range(run.first, run.last)]
                if height < run.last - run.first:
                    order.sort(key=lambda pair: pair[1])
                numbers: dict[int, Value] = {}
                vectors: dict[int, Value] = {}
                for r, v in order:
                    if r not in numbers:
                        numbers[r] = e.splat(e.load_one(rows[r], place))
                    if v not in vectors:
                        at = (v - run.first) * e.lanes
                        vectors[v] = e.load_masked(masks[v], weights, at) if by_mask else e.load(weights, at)
                    total[r, v].set(e.fma(numbers[r], vectors[v], total[r, v].get()))
        for r, v in grid:
            at = out_stride * r + v * e.lanes
            if self.masked:
                e.store_masked(total[r, v].get(), masks[v], out, at)
            else:
                e.store(total[r, v].get(), out, at)
        e.builder.ret_void()
        return e.function

    def call(
        self,
        e: Emitter,
        rows: Value,
        out: tuple[Value, Value],
        init: tuple[Value, Value],
        *runs: tuple[Value, Value, Value, Value, Value],
        columns: Value | None = None,
    ) -> None:
        """Call the tile of the right height.

        Args:
            rows: how many rows, at most `rows`; none is fine.
            out, init: each a pointer and the stride from row to row.
            runs: for each, a, its stride, the number of k, w and its stride (of no meaning where w is packed).
            columns: how many columns ``out`` has left, where the tile is masked.
        """
        columns = columns or e.integer(0)
        if self._last_rows is None:
            self._call(e, rows, out, init, columns, *runs)
            return
        ((a, a_stride, count, w, w_stride),) = runs
        beyond = e.most(self.vectors * e.lanes - columns, e.integer(0))
        whole = e.most(count - (beyond + (w_stride - 1)) // w_stride, e.integer(0))
        self._call(e, rows, out, init, columns, (a, a_stride, whole, w, w_stride))
        rest = count - whole
        with e.when(rest > 0), e.loop(0, columns, e.lanes) as column:
            place = (e.at(out[0], column), out[1])
            last = (e.at(a, whole * a_stride), a_stride, rest, e.at(w, whole * w_stride + column), w_stride)
            self._last_rows._call(e, rows, place, place, columns - column, last)

    def _call(
        self,
        e: Emitter,
        rows: Value,
        out: tuple[Value, Value],
        init: tuple[Value, Value],
        columns: Value,
        *runs: tuple[Value, Value, Value, Value, Value],
    ) -> None:
        flat = [value for run in runs for value in run]
        for height, function in enumerate(self._functions, 1):
            with e.when(rows.compare("==", height)):
                e.call(function, *out, *init, columns, *flat)


def pack_vectors(e: Emitter, kernel: Kernel, plan: Plan) -> None:
    """Copy the per-unit parameters to rows of whole vectors, by the first thread."""
    hidden, width = kernel.slot(e, "hidden"), kernel.slot(e, "width")
    packed = kernel.pointer(e, "packed_vectors")
    with e.when(e.arguments[1].compare("==", 0)):
        for place, name in enumerate(plan.vectors):
            source = kernel.pointer(e, f"vector.{name}")
            with e.loop(0, width, e.lanes) as unit:
                e.store(e.load_masked(e.mask(hidden - unit), source, unit), packed, width * place + unit)


def given_slots(plan: Plan) -> tuple[str, ...]:
    """The argument slots of what a call gives: ``resets`` [N] integers, and numbers with strides.

    The number of a given leaf for a row is at ``row of N * by_step + row of B * by_row``, so that one kernel
    serves numbers for every step ([N, H]), for every sequence ([B, H]) and for the layer ([H]).
    """
    numbers = (slot for leaf in plan.given for slot in (leaf, f"{leaf}.by_step", f"{leaf}.by_row"))
    return (*numbers, *(("resets",) if plan.resets else ()))


def load_given(
    e: Emitter, kernel: Kernel, plan: Plan, step: Step, row: Value, unit: Value, mask: Value
) -> dict[str, Value]:
    """A vector of each given leaf."""
    found = {}
    for leaf in plan.given:
        by_step, by_row = (kernel.slot(e, f"{leaf}.{stride}") for stride in ("by_step", "by_row"))
        at = (step.row + row) * by_step + row * by_row + unit
        found[leaf] = e.load_masked(mask, kernel.pointer(e, leaf), at)
    return found
