"""The forward kernel: a whole sequence through one layer in one direction.

    where weights take the time, for each chunk of steps: bias + x W_ih of all its rows    (`projection.py`)
    for each step:
        rows that begin here, or are reset, take their initial states
        for each unit block, in every other step from the last to the first:
            for each piece of the sum over inputs and units:    (its weights stay in the first-level cache)
                for each block of rows of this thread:
                    the tile:   accumulators = bias + x W_ih + h W_hh, where the first two are not there yet
            for each wave of the equations:                         (`engine/waves.py`)
                for each row:
                    new states, printed from the cell's graph; store
        where threads share rows, and each has units of its own: wait for each other

States live in two sets of rows, padded to whole groups, which take turns. The rows of different threads lie apart:
where one thread's rows followed on another's, the processor, which reads ahead, would take from one core what the other
is writing. What the backward pass reads is kept elsewhere: the states that enter each step, and ``plan.saved``.
A row that ends goes to ``final`` instead of the next step's rows. x and y are left where the caller has them: a table
(``places``) says where a step's rows stand there, and what is padding. Where the states have ``begun``, they lie in the
first step's rows already, and nothing is read from ``initial``.

Where products are of pairs (`products.py`), a thread rounds the rows of x and h of a slab before their tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from recollect.engine.llvm.functions import VectorTarget
from recollect.engine.llvm.kernel import (
    SLAB,
    Kernel,
    Share,
    Slab,
    Step,
    clear_padding,
    given_slots,
    load_given,
    there_and_back,
    walk,
)
from recollect.engine.llvm.packing import Packed, write_pack
from recollect.engine.llvm.projection import Projection
from recollect.engine.llvm.tile import Ahead, Run, Tile, pieces
from recollect.engine.llvm.tiling import Tiling
from recollect.engine.llvm.values import Emitter, Value
from recollect.engine.plan import Plan


def sizes(tiling: Tiling) -> tuple[str, ...]:
    """The argument slots that are sizes."""
    own = ("rounded_length", "rounded_of_thread") if tiling.bfloat16 else ("projected_steps",)
    return ("rows_of_set", "begun", "piece", *own)


def addresses(plan: Plan, tiling: Tiling) -> tuple[str, ...]:
    """The argument slots that come last: addresses, and what the call gives."""
    return (
        "x", "w_ih", "w_hh", "b_ih", "b_hh", "packed_vectors", "packed_bias", "packed",
        *(f"states.{state}" for state in plan.states), "rounded" if tiling.bfloat16 else "projected",
        *(f"kept.{state}" for state in plan.states), "saved",
        *(f"y.{state}" for state in plan.outputs),
        *(f"{kind}.{state}" for kind in ("initial", "final") for state in plan.states),
        *(f"vector.{name}" for name in plan.vectors), *given_slots(plan),
    )  # fmt: skip


def write(plan: Plan, tiling: Tiling, *, save: bool, fetching: bool = False) -> Kernel:
    """Write the kernel; ``save`` keeps what the backward pass needs, ``fetching`` fetches weights ahead."""
    kernel = Kernel(tiling, (*sizes(tiling), *addresses(plan, tiling)))
    pack, steps = write_pack(kernel, plan), _write_steps(kernel, plan, save=save, fetching=fetching)
    kernel.write_entries("forward", pack, steps, len(plan.gates))
    return kernel


def _write_steps(kernel: Kernel, plan: Plan, *, save: bool, fetching: bool) -> Emitter:
    tiling, block, group = kernel.tiling, kernel.tiling.block, kernel.tiling.group
    parts, count = tiling.unit_vectors, len(plan.accumulators)
    (first_x, last_x), (first_h, last_h) = plan.input_range, plan.recurrent_range
    runs = [Run(first_x * parts, last_x * parts, placed=not tiling.bfloat16), Run(first_h * parts, last_h * parts)]
    columns = [place * group + part * tiling.lanes for place in range(count) for part in range(parts)]
    tile = Tile(kernel, "tile", count * parts, runs, columns=columns, fetching=fetching)

    e = kernel.stage("steps")
    wide = e.wide(parts * tiling.group_blocks)  # a vector of all units of a group
    target = VectorTarget(wide)
    hidden, width, inputs = (kernel.slot(e, name) for name in ("hidden", "width", "inputs"))
    x, saved, places = (kernel.pointer(e, name) for name in ("x", "saved", "places"))
    packed, vectors = Packed(e, kernel, plan), kernel.pointer(e, "packed_vectors")
    initial, states, kept, final = (
        {state: kernel.pointer(e, f"{kind}.{state}") for state in plan.states}
        for kind in ("initial", "states", "kept", "final")
    )
    results_at = {state: kernel.pointer(e, f"y.{state}") for state in plan.outputs}
    make_operands = _RoundedOperands if tiling.bfloat16 else _Operands
    operands = make_operands(e, kernel, (inputs, hidden, width), x, states[plan.fed], tile.rows)
    sums, mids = (wide.scratch(SLAB * tile.rows * each) for each in (count, plan.waves.mids))
    sums_stride, row_lengths = e.integer(count * group), packed.row_lengths
    share, piece = Share(e, kernel), kernel.slot(e, "piece")
    first_group, last_group = share.of_units(width // group)

    backward_in_time = kernel.slot(e, "backward_in_time").compare("!=", 0)
    begin_step, end_step = (kernel.slot(e, name) for name in ("begin", "end"))
    projection = Projection(e, kernel, plan, packed, tile, (first_group, last_group), descending=backward_in_time)
    first_term, terms = e.choose(projection.on, operands.inputs, e.integer(0)), operands.inputs + operands.hidden
    with (
        projection.chunks(begin_step, end_step) as (begin_chunk, end_chunk),
        walk(e, kernel, begin_chunk, end_chunk, descending=backward_in_time) as step,
    ):
        odd = step.index & 1
        set_in, set_out = (turn * kernel.slot(e, "rows_of_set") for turn in (odd, e.integer(1) - odd))

        # Where threads share rows, each writes all of what it will read: the same numbers, so nobody need wait.
        def start_row(row: Value, row_in: Value) -> None:
            with e.loop(0, width, e.lanes) as unit:
                mask = e.mask(hidden - unit)
                for state in plan.states:
                    value = e.load_masked(mask, initial[state], row * hidden + unit)
                    e.store(value, states[state], row_in * width + unit)
                    if save:
                        e.store(value, kept[state], (step.row + row) * width + unit)

        # What the equations write is fetched while the tile computes: stores would wait for it, one by one.
        def claim(row: Value, unit: Value) -> None:
            at = step.row + row
            if save:
                for place in range(plan.saved):
                    e.prefetch(saved, (at * plan.saved + place) * width + unit, write=True)
                for state in plan.states:
                    e.prefetch(kept[state], (step.row_next + row) * width + unit, write=True)
            for result in results_at.values():
                e.prefetch(result, e.load_integer(places, at) * hidden + unit, write=True)

        begins = (step.active > step.active_before) & kernel.slot(e, "begun").compare("==", 0)
        with (
            e.when(begins),
            share.rows(e, step.active) as (start, rows, first),
            e.loop(e.most(start, step.active_before), start + rows) as row,
        ):
            start_row(row, set_in + first + row - start)
        if plan.resets:
            resets = kernel.pointer(e, "resets")
            with (
                share.rows(e, step.active) as (start, rows, first),
                e.loop(start, start + rows) as row,
                e.when(e.load_integer(resets, e.load_integer(places, step.row + row)).compare("!=", 0)),
            ):
                start_row(row, set_in + first + row - start)

        with (
            share.slabs(e) as slab,
            operands.of(slab, step, set_in),
            there_and_back(e, first_group, last_group, step.index) as which_group,
        ):
            units = which_group * group
            with (
                e.loop(0, tiling.group_blocks) as unit_block,
                e.when(units + unit_block * block < hidden),
                pieces(e, terms, piece, first_term) as (begin, end),
                slab.rows(e, step.active) as (which, start, rows, first),
            ):
                weights = packed.weights(which_group * tiling.group_blocks + unit_block)
                out = (e.at(sums, which * (tile.rows * count * group) + unit_block * block), sums_stride)
                start_sums, start_stride = projection.sums(which_group, unit_block, step.row + start)
                is_first = begin.compare("==", first_term)
                with e.when(is_first), e.loop(start, start + rows) as row:
                    for part in range(parts):
                        claim(row, units + unit_block * block + part * e.lanes)
                init = (e.choose(is_first, start_sums, out[0]), e.choose(is_first, start_stride, out[1]))
                x_from, x_end = e.least(begin, operands.inputs), e.least(end, operands.inputs)
                h_from, h_end = begin - x_from, end - x_end
                ahead = None
                if fetching:
                    past = e.choose(end.compare("==", terms), projection.unread, e.integer(0))
                    next_piece = e.at(weights, x_end * row_lengths[0] + h_end * row_lengths[1] + past)
                    ahead = Ahead.share(e, next_piece, max(row_lengths), end - begin, which, slab.count)
                row_of_h = operands.h(which, set_in + first, h_from)
                tile.call(
                    e, rows, out, init,
                    (*operands.x(which, x_from), x_end - x_from, e.at(weights, x_from * row_lengths[0])),
                    (*row_of_h, h_end - h_from, e.at(weights, packed.before + h_from * row_lengths[1])),
                    places=e.integer_at(places, step.row + start), ahead=ahead,
                )  # fmt: skip
            mask = wide.mask(hidden - units)
            for wave in plan.waves.graphs:
                with slab.rows(e, step.active) as (which, start, rows, first), e.loop(0, rows) as offset:
                    row, number = start + offset, which * tile.rows + offset
                    row_in, row_out = set_in + first + offset, set_out + first + offset
                    place = e.load_integer(places, step.row + row)
                    own_sums = e.at(sums, number * (count * group))
                    own_mids = e.at(mids, number * (plan.waves.mids * group))
                    # What a wave does not read, LLVM does not load.
                    leaves = {name: wide.load(own_sums, at * group) for at, name in enumerate(plan.accumulators)}
                    for name in plan.states:
                        leaves[f"prev.{name}"] = wide.load(states[name], row_in * width + units)
                    for at, name in enumerate(plan.vectors):
                        leaves[f"vec.{name}"] = wide.load(vectors, width * at + units)
                    for at in range(plan.waves.mids):
                        leaves[f"mid.{at}"] = wide.load(own_mids, at * group)
                    leaves |= load_given(wide, kernel, plan, place, row, units, mask)
                    for name, result in wave.evaluate(leaves, target).items():
                        kind, _, of = name.partition(".")
                        if kind == "mid":
                            wide.store(result, own_mids, int(of) * group)
                        elif kind == "saved" and save:
                            wide.store(result, saved, ((step.row + row) * plan.saved + int(of)) * width + units)
                        elif kind == "next":
                            goes_on, final_at = row < step.active_next, e.at(final[of], row * width + units)
                            next_at = e.at(states[of], row_out * width + units)
                            wide.store(result, e.choose(goes_on, next_at, final_at))
                            if save:
                                kept_at = e.at(kept[of], (step.row_next + row) * width + units)
                                wide.store(result, e.choose(goes_on, kept_at, final_at))
                            if of in results_at:
                                wide.store_masked(result, mask, results_at[of], place * hidden + units)
        with e.when(share.by_units):
            kernel.barrier(e)
    with e.when(begin_step.compare("==", 0)):
        clear_padding(e, kernel, [f"y.{state}" for state in plan.outputs], "hidden")
    e.builder.ret_void()
    return e


class _Operands:
    """Rows of x and of the state that W_hh multiplies, as the tile reads them: here, where they are.

    Args:
        sizes: I, H and the row length of the state.
        x, fed: where they are.
        tile_rows: of the tile.

    Attributes:
        inputs, hidden: terms in a row of x, and of the state.
    """

    def __init__(
        self, e: Emitter, kernel: Kernel, sizes: tuple[Value, Value, Value], x: Value, fed: Value, tile_rows: int
    ) -> None:
        self._e, self._kernel, self._x, self._fed, self._tile_rows = e, kernel, x, fed, tile_rows
        self._inputs, self._hidden, self._width = sizes
        self.inputs, self.hidden = (kernel.products.terms(count) for count in sizes[:2])

    @contextmanager
    def of(self, slab: Slab, step: Step, set_in: Value) -> Iterator[None]:
        """Have the operands of a slab at a step ready within the block; its states are in that set of rows."""
        yield

    def x(self, which: Value, term: Value) -> tuple[Value, Value]:
        """The address of a term in the first row of one of the slab's blocks, and the stride from row to row."""
        return self._e.at(self._x, term), self._inputs

    def h(self, which: Value, row: Value, term: Value) -> tuple[Value, Value]:
        """The same of the state; ``row`` is where the block's first row is among the states."""
        return self._e.at(self._fed, row * self._width + term), self._width


class _RoundedOperands(_Operands):
    """Rounded for each slab, in memory of the thread's own: [row of the slab][terms of x, then of the state]."""

    def __init__(
        self, e: Emitter, kernel: Kernel, sizes: tuple[Value, Value, Value], x: Value, fed: Value, tile_rows: int
    ) -> None:
        super().__init__(e, kernel, sizes, x, fed, tile_rows)
        self._length, self._places = kernel.slot(e, "rounded_length"), kernel.pointer(e, "places")
        before = e.arguments[1] * kernel.slot(e, "rounded_of_thread")
        self._rounded = e.at(kernel.pointer(e, "rounded"), before)

    @contextmanager
    def of(self, slab: Slab, step: Step, set_in: Value) -> Iterator[None]:
        e = self._e
        with slab.rows(e, step.active) as (which, start, rows, first), e.loop(0, rows) as offset:
            place = e.load_integer(self._places, step.row + start + offset)
            row_of_x = e.at(self._x, place * self._inputs)
            row_of_h = e.at(self._fed, (set_in + first + offset) * self._width)
            target = e.at(self._rounded, (which * self._tile_rows + offset) * self._length)
            # In this order: the last vector of x ends in the room of h.
            self._round(row_of_x, self._inputs, target)
            self._round(row_of_h, self._hidden, e.at(target, self.inputs))
        yield

    def _round(self, row: Value, count: Value, target: Value) -> None:
        e, products = self._e, self._kernel.products
        with e.loop(0, count, e.lanes * products.per_term) as k:
            e.store(products.load(e, products.masks(e, count - k), row, k), target, products.terms(k))

    def x(self, which: Value, term: Value) -> tuple[Value, Value]:
        return self._e.at(self._rounded, which * self._tile_rows * self._length + term), self._length

    def h(self, which: Value, row: Value, term: Value) -> tuple[Value, Value]:
        return self.x(which, self.inputs + term)
