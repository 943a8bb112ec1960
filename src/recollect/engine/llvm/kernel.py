"""What the forward and the backward kernel share: arguments, threads, the walk through time, the tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from recollect.engine.llvm.machine import Machine
from recollect.engine.llvm.values import I64, POINTER, VOID, Emitter, Value
from recollect.engine.plan import Plan

# Slots that every kernel begins with: the team, and the layout of the rows.
COMMON = (
    "threads", "parallel", "thread_num", "num_threads",
    "steps", "batch", "rows", "hidden", "blocks", "backward_in_time", "batch_sizes", "batch_sizes_step",
    "width", "w_hh", "packed",
)  # fmt: skip
PANEL = 4  # vectors side by side in the backward pass's product


@dataclass(frozen=True)
class Shape:
    """How a plan is cut into tiles on a machine, for one dtype.

    A *unit block* is ``unit_vectors`` vectors of hidden units; a tile holds all accumulators of one unit
    block for ``tile_rows`` batch rows in registers.
    """

    dtype: str
    lanes: int
    unit_vectors: int
    tile_rows: int
    panel_rows: int

    @property
    def block(self) -> int:
        """Units in a unit block."""
        return self.unit_vectors * self.lanes

    def width(self, hidden: int) -> int:
        """H rounded up to whole unit blocks: the row length of internal buffers."""
        return -(-hidden // self.block) * self.block

    def panel_width(self, hidden: int) -> int:
        """H rounded up to whole panels of the backward pass's product."""
        return -(-hidden // (PANEL * self.lanes)) * PANEL * self.lanes


def make_shape(plan: Plan, machine: Machine, dtype: str, hidden: int) -> Shape:
    """Choose tiles: about four vectors wide, and as many rows as registers allow."""
    lanes, count = machine.lanes(dtype), len(plan.accumulators)
    unit_vectors = max(1, min(4 // count, -(-hidden // lanes)))
    rows = max(1, min(8, machine.accumulators // (count * unit_vectors)))
    return Shape(dtype, lanes, unit_vectors, rows, max(1, machine.accumulators // PANEL))


class Kernel:
    """Names of the argument slots and the module that is being written."""

    def __init__(self, shape: Shape, slots: Sequence[str]) -> None:
        self.shape = shape
        self.slots = (*COMMON, *slots)
        self.module = ir.Module()

    def function(self, name: str, *types: ir.Type) -> Emitter:
        made = ir.Function(self.module, ir.FunctionType(VOID, types), name)
        made.linkage = "internal"
        return Emitter(made, self.shape.dtype, self.shape.lanes)

    def slot(self, e: Emitter, name: str) -> Value:
        """An integer argument."""
        arguments = e.arguments[0]
        return e.load_integer(arguments, e.integer(self.slots.index(name)))

    def pointer(self, e: Emitter, name: str) -> Value:
        """A pointer argument."""
        return Value(e.builder, e.builder.inttoptr(self.slot(e, name).ir, POINTER))

    def entry(self, name: str, stages: Sequence[Emitter]) -> None:
        """Write the function that runs the stages ``(arguments, thread, threads)``, on a team where asked to.

        The end of a stage is a barrier: the next begins when all threads are through.
        """
        e = self.function(name, POINTER)
        e.function.linkage = "external"
        threads = self.slot(e, "threads")
        alone = threads <= 1
        with e.builder.if_else(alone.ir) as (one, many):
            with one:
                for stage in stages:
                    e.call(stage.function, e.arguments[0], e.integer(0), e.integer(1))
            with many:
                parallel = self.slot(e, "parallel")
                i32 = ir.IntType(32)
                kind = ir.FunctionType(VOID, [POINTER, POINTER, i32, i32])
                for stage in stages:
                    region = self._region(stage)
                    e.call_address(
                        parallel,
                        kind,
                        region,
                        e.arguments[0].ir,
                        e.builder.trunc(threads.ir, i32),
                        ir.Constant(i32, 0),
                    )
        e.builder.ret_void()

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
    """One step of the walk: time t, its active rows, and where its rows lie."""

    index: Value
    active: Value
    active_before: Value
    active_next: Value
    row: Value
    row_next: Value


@contextmanager
def walk(e: Emitter, kernel: Kernel, *, descending: Value) -> Iterator[Step]:
    """``for each step`` from the first to the last, or from the last where ``descending`` holds."""
    steps, sizes = kernel.slot(e, "steps"), kernel.pointer(e, "batch_sizes")
    stride = kernel.slot(e, "batch_sizes_step")  # 0 for a dense batch: one number serves all steps

    def size(t: Value) -> Value:
        return e.load_integer(sizes, t * stride)

    first_row = e.choose(descending, kernel.slot(e, "rows") - size(steps - 1), e.integer(0))
    row = e.variable(I64, first_row)
    before = e.variable(I64, e.integer(0))
    with e.loop(0, steps) as index:
        t = e.choose(descending, steps - 1 - index, index)
        after = e.choose(descending, t - 1, t + 1)
        last = index.compare("==", steps - 1)
        active = size(t)
        active_next = e.choose(last, e.integer(0), size(e.choose(last, t, after)))
        row_now = row.get()
        row_next = e.choose(descending, row_now - active_next, row_now + active)
        yield Step(index, active, before.get(), active_next, row_now, row_next)
        row.set(row_next)
        before.set(active)


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


def write_tiles(
    kernel: Kernel, vectors: int, rows: int, runs: Sequence[tuple[int, int]], name: str
) -> list[ir.Function]:
    """Write the tile for 1 to ``rows`` rows.

    A tile adds products to a block of accumulators that stays in registers:
    ``out[r][v] = init[r][v] + sum over runs of sum_k a[r][k] w[k][v]``, v in the run's range of vectors.

    Args:
        vectors: width of the block.
        rows: the tallest tile.
        runs: for each product, the range [first, last) of vectors that it adds to.

    Returns:
        Functions ``(out, out_stride, init, init_stride, then per run: a, a_stride, k, w)``; the one for r
        rows at index r - 1. Strides are in numbers, from row to row.
    """
    made = []
    types = [POINTER, I64, POINTER, I64] + [POINTER, I64, I64, POINTER] * len(runs)
    for height in range(1, rows + 1):
        e = kernel.function(f"{name}_{height}", *types)
        out, out_stride, init, init_stride = e.arguments[:4]
        grid = [(r, v) for r in range(height) for v in range(vectors)]
        total = {
            (r, v): e.variable(e.vector, e.load(init, init_stride * r + v * e.lanes)) for r, v in grid
        }  # fmt: skip
        for place, (first, last) in enumerate(runs):
            a, a_stride, count, w = e.arguments[4 + 4 * place : 8 + 4 * place]
            row_starts = [e.at(a, a_stride * r) for r in range(height)]
            with e.loop(0, count) as k:
                weights = e.at(w, k * ((last - first) * e.lanes))
                columns = {v: e.load(weights, (v - first) * e.lanes) for v in range(first, last)}
                for r in range(height):
                    value = e.splat(e.load_one(row_starts[r], k))
                    for v in range(first, last):
                        total[r, v].set(e.fma(value, columns[v], total[r, v].get()))
        for r, v in grid:
            e.store(total[r, v].get(), out, out_stride * r + v * e.lanes)
        e.builder.ret_void()
        made.append(e.function)
    return made


def call_tile(e: Emitter, tiles: Sequence[ir.Function], rows: Value, *arguments: Value) -> None:
    """Call the tile of the right height."""
    for height, tile in enumerate(tiles, 1):
        with e.when(rows.compare("==", height)):
            e.call(tile, *arguments)


def pack_vectors(e: Emitter, kernel: Kernel, plan: Plan) -> None:
    """Copy the per-unit parameters to rows of whole vectors, by the first thread."""
    hidden, width = kernel.slot(e, "hidden"), kernel.slot(e, "width")
    packed = kernel.pointer(e, "packed_vectors")
    with e.when(e.arguments[1].compare("==", 0)):
        for place, name in enumerate(plan.vectors):
            source = kernel.pointer(e, f"vector.{name}")
            with e.loop(0, width, e.lanes) as unit:
                e.store(e.load_masked(e.mask(hidden - unit), source, unit), packed, width * place + unit)
