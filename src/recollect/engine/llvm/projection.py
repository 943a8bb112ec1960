"""What inputs add to the sums of many steps at once, where weights take the time rather than the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from recollect.engine.llvm.kernel import Kernel, rows_of_steps
from recollect.engine.llvm.packing import Packed
from recollect.engine.llvm.tile import Ahead, Tile, pieces
from recollect.engine.llvm.values import I64, Emitter, Value
from recollect.engine.plan import Plan


class Projection:
    """``bias + x W_ih`` of all rows of a chunk of steps, for a thread's own units, before these steps.

    With few rows a step takes as long as its weights take to come from a cache. The inputs of many steps are known,
    so that their rows can share one load of W_ih. The sums wait in [group][row of the chunk][accumulator][unit] until
    a step's tile goes on with them: bias, inputs, states, in this order as ever, so no bit changes.

    The slot ``projected_steps`` says how many steps a chunk has; 0 where each step begins with the biases.

    Args:
        e: the steps' function.
        tile: the steps' own, whose first product is x W_ih.
        groups: the first of the thread's own, and the one after the last.
        descending: whether steps are walked from the last time to the first.

    Attributes:
        on: whether inputs are multiplied ahead.
        unread: numbers at the beginning of a unit block's weights that the steps do not read then.
    """

    def __init__(
        self,
        e: Emitter,
        kernel: Kernel,
        plan: Plan,
        packed: Packed,
        tile: Tile,
        groups: tuple[Value, Value],
        *,
        descending: Value,
    ) -> None:
        self._e, self._kernel, self._packed, self._tile, self._groups = e, kernel, packed, tile, groups
        self._descending, self._row_length = descending, len(plan.accumulators) * kernel.tiling.group
        self._possible = not kernel.tiling.bfloat16  # whose rows of x are rounded slab by slab
        self._steps = kernel.slot(e, "projected_steps") if self._possible else e.integer(0)
        self.on = self._steps.compare("!=", 0)
        self.unread = e.choose(self.on, packed.before, e.integer(0))
        self._first_row = e.variable(I64, e.integer(0))

    @contextmanager
    def chunks(self, begin: Value, end: Value) -> Iterator[tuple[Value, Value]]:
        """``for (begin, end) in the chunks of the steps [begin, end)``, whose inputs are multiplied then."""
        e = self._e
        size = e.choose(self.on, self._steps, end - begin)
        with e.loop(begin, end, size) as first:
            last = e.least(first + size, end)
            if self._possible:
                with e.when(self.on):
                    self._multiply(first, last)
            yield first, last

    def sums(self, group: Value, unit_block: Value, row: Value) -> tuple[Value, Value]:
        """Where sums of a unit block begin, for a row of the chunk, and the stride from row to row."""
        e = self._e
        biases, none = self._packed.biases(group, unit_block), e.integer(0)
        if not self._possible:
            return biases, none
        sums = self._sums(group, unit_block, row - self._first_row.get())
        return e.choose(self.on, sums, biases), e.choose(self.on, e.integer(self._row_length), none)

    def _sums(self, group: Value, unit_block: Value, row: Value) -> Value:
        kernel, e = self._kernel, self._e
        most = self._steps * kernel.slot(e, "rows_of_set")  # rows of a chunk
        at = (group * most + row) * self._row_length + unit_block * kernel.tiling.block
        return e.at(kernel.pointer(e, "projected"), at)

    def _multiply(self, begin: Value, end: Value) -> None:
        e, kernel, packed, tile, tiling = self._e, self._kernel, self._packed, self._tile, self._kernel.tiling
        hidden, inputs = kernel.slot(e, "hidden"), kernel.slot(e, "inputs")
        x, places = kernel.pointer(e, "x"), kernel.pointer(e, "places")
        first_row, end_row = rows_of_steps(e, kernel, begin, end, descending=self._descending)
        self._first_row.set(first_row)
        none, stride = e.integer(0), e.integer(self._row_length)
        with (
            e.loop(*self._groups) as group,
            e.loop(0, tiling.group_blocks) as unit_block,
            e.when(group * tiling.group + unit_block * tiling.block < hidden),
            pieces(e, inputs, e.integer(tiling.piece(tile.widest))) as (k, k_end),
            e.loop(first_row, end_row, tile.rows) as row,
        ):
            is_first = k.compare("==", 0)
            out, biases = self._sums(group, unit_block, row - first_row), packed.biases(group, unit_block)
            weights = packed.weights(group * tiling.group_blocks + unit_block)
            weights = e.at(weights, k * packed.row_lengths[0])
            tile.call(
                e, e.least(end_row - row, e.integer(tile.rows)), (out, stride),
                (e.choose(is_first, biases, out), e.choose(is_first, none, stride)),
                (e.at(x, k), inputs, k_end - k, weights), (x, none, none, weights),
                places=e.integer_at(places, row),
                ahead=Ahead(weights, none) if tile.fetching else None,  # many rows share them already
            )  # fmt: skip
