"""The kernel that says where the rows of a padded batch stand, the longest sequence first.

    low, high, whether they are in order, from the lengths
    active[t], the sequences longer than t, and from it where the rows of each step begin
    the order: each sequence goes behind those that are longer, and behind equal ones before it  (a counting sort)
    for each step t, for each sequence in that order:
        its place in the batch, in the list of rows where t < its length, else in that of padding

NumPy does the same in some twenty calls, which take a tenth of the time of a call of a layer at T = 100.
"""

from __future__ import annotations

from recollect.engine.llvm.kernel import COMMON, Kernel
from recollect.engine.llvm.tiling import without_tiles
from recollect.engine.llvm.values import I64

# ``lengths`` [B] and the ``table``, which has `Table`'s parts one after the other. The last ones are results: the
# shortest and the longest sequence, the rows of the first step, N, and 1 where no sequence is longer than the one
# before. Where a length is below 0 or above T, neither the table nor the rows are written.
ARGUMENTS = ("lengths", "batch", "most_steps", "batch_first", "table", "low", "high", "begun", "count", "in_order")
SLOTS = (*COMMON, *ARGUMENTS)


class Table:
    """Where the parts of a table begin, in integers.

    Attributes:
        order: [B], which sequence is where in the order.
        inverse: [B], where in the order each sequence is.
        offsets: [T + 1], where the rows of each step begin.
        places: [T * B], `Rows`' places.
        total: integers in all.
    """

    def __init__(self, batch: int, steps: int) -> None:
        self.order, self.inverse, self.offsets = 0, batch, 2 * batch
        self._counts = self.offsets + steps + 1  # of the kernel's own: [T + 1]
        self.places = self._counts + steps + 1
        self.total = self.places + steps * batch


def write() -> Kernel:
    """Write the kernel, the same for every machine."""
    kernel = Kernel(without_tiles("float64", 4), ARGUMENTS)
    e = kernel.entry("lengths")
    lengths, table = kernel.pointer(e, "lengths"), kernel.pointer(e, "table")
    batch, steps = kernel.slot(e, "batch"), kernel.slot(e, "most_steps")
    order, inverse = table, e.integer_at(table, batch)
    offsets = e.integer_at(inverse, batch)
    counts = e.integer_at(offsets, steps + 1)
    places = e.integer_at(counts, steps + 1)
    zero, one = e.integer(0), e.integer(1)

    low, high = (e.variable(I64, e.load_integer(lengths, 0)) for _ in range(2))
    in_order = e.variable(I64, one)
    with e.loop(1, batch) as row:
        length, before = e.load_integer(lengths, row), e.load_integer(lengths, row - 1)
        low.set(e.least(low.get(), length))
        high.set(e.most(high.get(), length))
        in_order.set(e.choose(length > before, zero, in_order.get()))
    for name, result in (("low", low), ("high", high), ("in_order", in_order)):
        kernel.set_slot(e, name, result.get())
    with e.when((low.get() >= 0) & (high.get() <= steps)):
        with e.loop(0, steps + 1) as length:
            e.store_integer(zero, counts, length)
        with e.loop(0, batch) as row:
            length = e.load_integer(lengths, row)
            e.store_integer(e.load_integer(counts, length) + 1, counts, length)
        longer = e.variable(I64, zero)  # than the length that is looked at
        with e.loop(0, steps + 1) as index:
            length, so_far = steps - index, longer.get()
            longer.set(so_far + e.load_integer(counts, length))
            e.store_integer(so_far, counts, length)
        e.store_integer(zero, offsets, 0)
        with e.loop(0, steps) as t:
            e.store_integer(e.load_integer(offsets, t) + e.load_integer(counts, t), offsets, t + 1)
        count = e.load_integer(offsets, steps)
        kernel.set_slot(e, "count", count)
        kernel.set_slot(e, "begun", e.load_integer(counts, 0))
        with e.loop(0, batch) as row:
            length = e.load_integer(lengths, row)
            place = e.load_integer(counts, length)
            e.store_integer(place + 1, counts, length)
            e.store_integer(row, order, place)
            e.store_integer(place, inverse, row)
        batch_first = kernel.slot(e, "batch_first").compare("!=", 0)
        of_step, of_row = e.choose(batch_first, one, batch), e.choose(batch_first, steps, one)
        with e.loop(0, steps) as t:
            first = e.load_integer(offsets, t)
            active = e.load_integer(offsets, t + 1) - first
            padding = count + t * batch - first - active
            with e.loop(0, batch) as at:
                place = t * of_step + e.load_integer(order, at) * of_row
                e.store_integer(place, places, at + e.choose(at < active, first, padding))
    e.builder.ret_void()
    return kernel
