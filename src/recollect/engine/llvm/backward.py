"""The backward kernel: gradients of the states, the inputs and the weights.

    for each chunk of steps, last first:
        stage "steps", batch rows dealt to the threads:
            for each step, last first:
                the derivatives:  dpre and the direct part of dL/dstate, from the plan's backward graph
                a tile per panel: dL/dh of the step before += dpre W_hh
            rows that were reset hand dL/dstate to their initial states
        stage "products", while the chunk's dpre is still in the cache, rows of results dealt to the threads:
            dW_ih += dpre' x,  dW_hh += dpre' h,  sums over rows for biases and vectors,  dx = dpre W_ih

``grad.s`` [B, grad_width] holds dL/ds of the rows' present step: at the start the gradients of the final
states, at the end those of the initial states; ``restart.s`` adds up what resets hand over. Each number is
summed in one order, whatever the number of threads and wherever chunks begin, so gradients repeat to the bit.

Like the forward pass it finds rows of x, dx and dy in the table ``places``.

A kernel that is watched also writes dL/ds of each state as it leaves each step, [N, width] (``leaving.s``).

A row of a chunk's buffer holds ``dinp`` for all gates, then ``drec`` where it differs, then ``dvec``.

Where products are of pairs (`products.py`), it holds them rounded, the gates of each kind filled up to whole pairs:
dL/dh and dx take pairs along a row. For the sums over rows a stage of its own, after "steps", pairs the chunk's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from recollect.engine.llvm.derivatives import Derivatives
from recollect.engine.llvm.kernel import (
    Kernel,
    Share,
    Step,
    clear_padding,
    given_slots,
    pack_vectors,
    rows_of_steps,
    there_and_back,
    walk,
)
from recollect.engine.llvm.tile import Ahead, Run, Tile, pieces
from recollect.engine.llvm.tiling import WIDE, Tiling, round_up
from recollect.engine.llvm.values import SIZE, Emitter, Value
from recollect.engine.plan import Plan

_CHUNK_BYTES = 1 << 20  # about a second-level cache
_FEWEST_ROWS, _MOST_ROWS = 128, 1024


def sizes(tiling: Tiling) -> tuple[str, ...]:
    """The argument slots that are sizes."""
    common = ("chunk_steps", "piece", "chunk_stride", "columns", "grad_width")
    return (*common, *(("paired_stride",) if tiling.bfloat16 else ()))


def addresses(plan: Plan, tiling: Tiling, *, watched: bool = False) -> tuple[str, ...]:
    """The argument slots that come last: addresses, and what the call gives."""
    return (
        "x", "dx", "w_ih", "w_hh", "dw_ih", "dw_hh", "sums",
        *(f"states.{state}" for state in plan.states), "saved",
        *(f"{kind}.{state}" for kind in ("dy", "dy_stride") for state in plan.outputs),
        *(f"{kind}.{state}" for kind in grad_kinds(plan)[1:] for state in plan.states),
        *(f"vector.{name}" for name in plan.vectors), *given_slots(plan),
        *(f"leaving.{state}" for state in (plan.own_states if watched else ())),
        "packed_vectors", "chunk", "packed_ih", "packed_hh", *(("paired",) if tiling.bfloat16 else ()),
    )  # fmt: skip


def grad_kinds(plan: Plan) -> tuple[str, ...]:
    """The buffers that there is one of for each state."""
    return ("states", "grad", "restart") if plan.resets else ("states", "grad")


def gate_columns(plan: Plan, tiling: Tiling, hidden: int) -> int:
    """Numbers in a row of a chunk's buffer for all gates of a kind: ``dinp`` or ``drec``."""
    return tiling.terms(hidden * len(plan.gates)) * tiling.products.per_term


def chunk_columns(plan: Plan, tiling: Tiling, hidden: int) -> int:
    """Numbers in a row of a chunk's buffer."""
    return gate_columns(plan, tiling, hidden) * (2 if plan.split else 1) + hidden * len(plan.vectors)


def chunk_stride(tiling: Tiling, columns: int) -> int:
    """Length of that row in memory, in terms: whole panels."""
    return tiling.spread(tiling.terms(round_up(columns, WIDE * tiling.lanes)))


def paired_stride(tiling: Tiling, columns: int) -> int:
    """The same of two such rows that are paired; 0 where none are."""
    return tiling.spread(round_up(columns, WIDE * tiling.lanes)) if tiling.bfloat16 else 0


def chunk_rows(tiling: Tiling, columns: int) -> int:
    """Rows for a chunk: enough to keep the products' tiles busy, few enough to stay in the cache."""
    each = (chunk_stride(tiling, columns) + paired_stride(tiling, columns) // 2) * SIZE[tiling.dtype]
    return min(max(_CHUNK_BYTES // each, _FEWEST_ROWS), _MOST_ROWS)


def write(plan: Plan, tiling: Tiling, *, watched: bool = False, fetching: bool = False) -> Kernel:
    """Write the kernel; if it is ``watched`` it also leaves dL/ds of each state at each step.

    ``fetching`` fetches weights ahead.
    """
    kernel = Kernel(tiling, (*sizes(tiling), *addresses(plan, tiling, watched=watched)))
    pack = _write_pack(kernel, plan)
    writers = (
        partial(_write_steps, fetching=fetching),
        *((_write_paired,) if tiling.bfloat16 else ()),
        _write_products,
    )
    stages = [write_stage(kernel, plan) for write_stage in writers]
    kernel.write_entries("backward", pack, _write_chunks(kernel, stages), len(plan.gates))
    return kernel


def _write_chunks(kernel: Kernel, stages: Sequence[Emitter]) -> Emitter:
    """Go through a chunk of steps after the other: each in all stages, which find it in the slots of the call's own."""
    e = kernel.stage("chunks")
    first, last, steps = (kernel.slot(e, name) for name in ("begin", "end", "chunk_steps"))
    with e.loop(first, last, steps) as begin:
        kernel.barrier(e)  # all have read the slots
        with e.when(e.arguments[1].compare("==", 0)):
            kernel.set_slot(e, "begin", begin)
            kernel.set_slot(e, "end", e.least(begin + steps, last))
        for stage in stages:
            kernel.barrier(e)
            stage.function.attributes.add("noinline")
            e.call(stage.function, *e.arguments)
    e.builder.ret_void()
    return e


def _write_pack(kernel: Kernel, plan: Plan) -> Emitter:
    """Lay W_ih and W_hh out as tiles read them: [panel][term of gate and unit][vectors of a panel]."""
    e, products = kernel.stage("pack"), kernel.products
    hidden = kernel.slot(e, "hidden")
    rows = hidden * len(plan.gates)
    terms = products.terms(rows)
    tiling = kernel.tiling
    for name, width, vectors in (
        ("hh", hidden, tiling.hidden_wide),
        ("ih", kernel.slot(e, "inputs"), tiling.input_wide),
    ):
        source, packed = kernel.pointer(e, f"w_{name}"), kernel.pointer(e, f"packed_{name}")
        columns = vectors * e.lanes
        with e.loop(e.arguments[1], (width + (columns - 1)) // columns, e.arguments[2]) as panel:
            masks = [e.mask(width - panel * columns - part * e.lanes) for part in range(vectors)]
            with e.loop(0, rows, products.per_term) as k:
                of_term = products.rows(e, k, rows)
                for part, mask in enumerate(masks):
                    values = [
                        e.load_masked(mask, source, row * width + panel * columns + part * e.lanes) for row in of_term
                    ]
                    value = products.stacked(e, values, k, rows)
                    e.store(value, packed, (panel * terms + products.terms(k)) * columns + part * e.lanes)
    pack_vectors(e, kernel, plan)
    e.builder.ret_void()
    return e


def _write_steps(kernel: Kernel, plan: Plan, *, fetching: bool) -> Emitter:
    wide = kernel.tiling.hidden_wide
    tile = Tile(kernel, "carry", wide, [Run(0, wide)], fetching=fetching)
    e = kernel.stage("steps")
    hidden, width, grad_width = (kernel.slot(e, name) for name in ("hidden", "width", "grad_width"))
    chunk, stride = kernel.pointer(e, "chunk"), kernel.slot(e, "chunk_stride")
    gates = kernel.products.terms(hidden * len(plan.gates))
    drec = e.at(chunk, gates) if plan.split else chunk
    dh, packed = kernel.pointer(e, f"grad.{plan.fed}"), kernel.pointer(e, "packed_hh")
    columns = wide * e.lanes
    first_row, _ = _chunk_rows(e, kernel)
    share, piece, derivatives = Share(e, kernel), kernel.slot(e, "piece"), Derivatives(e, kernel, plan)
    # A thread's units are those of its panels of dL/dh, so what it derives from these it has summed itself.
    first_panel, last_panel = share.of_units((hidden + (columns - 1)) // columns)
    own = first_panel * columns, e.least(last_panel * columns, grad_width)
    with walk(
        e, kernel, kernel.slot(e, "begin"), kernel.slot(e, "end"), descending=_forward_in_time(e, kernel)
    ) as step:
        with (
            share.rows(e, step.active) as (start, rows, _),
            e.loop(start, start + rows) as row,
            e.loop(own[0], e.least(own[1], width), e.lanes) as unit,  # as they lie in memory: it is read ahead
        ):
            derivatives.write(step, first_row, row, unit)
        with e.when(share.by_units):
            kernel.barrier(e)
        with (
            there_and_back(e, first_panel, last_panel, step.index) as panel,
            pieces(e, gates, piece) as (begin, end),
            share.blocks(e, step.active) as (block, start, rows, _),
        ):
            place = (e.at(dh, start * grad_width + panel * columns), grad_width)
            a = e.at(drec, (step.row - first_row + start) * stride + begin)
            ahead = None
            if fetching:
                next_piece = e.at(packed, (panel * gates + end) * columns)
                ahead = Ahead.share(e, next_piece, columns, end - begin, block, share.count)
            tile.call(
                e, rows, place, place, (a, stride, end - begin, e.at(packed, (panel * gates + begin) * columns)),
                ahead=ahead,
            )  # fmt: skip
        if plan.resets:
            _write_restarts(e, kernel, plan, step, share, own)
    e.builder.ret_void()
    return e


def _write_restarts(e: Emitter, kernel: Kernel, plan: Plan, step: Step, share: Share, own: tuple[Value, Value]) -> None:
    """Where a row was reset before this step, what has come back so far belongs to its initial states."""
    grad_width = kernel.slot(e, "grad_width")
    resets, places = (kernel.pointer(e, name) for name in ("resets", "places"))
    with (
        share.rows(e, step.active) as (start, rows, _),
        e.loop(start, start + rows) as row,
        e.when(e.load_integer(resets, e.load_integer(places, step.row + row)).compare("!=", 0)),
        e.loop(*own, e.lanes) as unit,
    ):
        for state in plan.states:
            grad, restart = (e.at(kernel.pointer(e, f"{kind}.{state}"), row * grad_width + unit)
                             for kind in ("grad", "restart"))  # fmt: skip
            e.store(e.load(restart) + e.load(grad), restart)
            e.store(e.zeros(), grad)


def _forward_in_time(e: Emitter, kernel: Kernel) -> Value:
    """Whether the layer runs forward in time, so that its backward pass descends."""
    return kernel.slot(e, "backward_in_time").compare("==", 0)


def _chunk_rows(e: Emitter, kernel: Kernel) -> tuple[Value, Value]:
    """The first row of the chunk, and how many it has."""
    begin, end = (kernel.slot(e, name) for name in ("begin", "end"))
    first, last = rows_of_steps(e, kernel, begin, end, descending=_forward_in_time(e, kernel))
    return first, last - first


def _write_paired(kernel: Kernel, plan: Plan) -> Emitter:
    """Pair the rows of the chunk, for the sums over rows: [pair of rows][column]."""
    e = kernel.stage("paired")
    chunk, paired = kernel.pointer(e, "chunk"), kernel.pointer(e, "paired")
    stride, paired_stride, columns = (kernel.slot(e, name) for name in ("chunk_stride", "paired_stride", "columns"))
    products, halves = kernel.products, e.halves()
    _, rows = _chunk_rows(e, kernel)
    with e.loop(e.arguments[1], products.terms(rows), e.arguments[2]) as pair:
        k = products.numbers(pair)
        of_pair = products.rows(e, k, rows)
        with e.loop(0, columns, e.lanes) as column:
            values = [halves.load(chunk, products.numbers(row * stride) + column) for row in of_pair]
            e.store(products.stacked(e, values, k, rows), paired, pair * paired_stride + column)
    e.builder.ret_void()
    return e


def _write_products(kernel: Kernel, plan: Plan) -> Emitter:
    tiling = kernel.tiling
    weight_tiles = {
        wide: Tile(kernel, f"weight_{wide}", wide, [Run(0, wide, down=True)], masked=True)
        for wide in {tiling.input_wide, tiling.hidden_wide}
    }
    input_tile = Tile(kernel, "input", tiling.input_wide, [Run(0, tiling.input_wide)], masked=True, placed=True)
    e = kernel.stage("products")
    thread, threads = e.arguments[1], e.arguments[2]
    inputs, hidden, width, columns = (kernel.slot(e, name) for name in ("inputs", "hidden", "width", "columns"))
    chunk, stride, sums = kernel.pointer(e, "chunk"), kernel.slot(e, "chunk_stride"), kernel.pointer(e, "sums")
    gates, places = hidden * len(plan.gates), kernel.pointer(e, "places")
    first_row, rows = _chunk_rows(e, kernel)
    products = kernel.products
    gate_terms, row_terms = products.terms(gates), products.terms(rows)
    down, down_stride = chunk, stride  # the chunk, for sums over its rows
    if tiling.bfloat16:
        down, down_stride = kernel.pointer(e, "paired"), kernel.slot(e, "paired_stride")
    # Sums over rows go the way that the walk goes, so that no bit of them depends on where a chunk begins.
    descending = _forward_in_time(e, kernel)
    onward = e.choose(descending, -down_stride, down_stride)

    def walked(term: Value) -> Value:
        return e.choose(descending, row_terms - 1 - term, term)

    def own_tiles(count: Value, tile: Tile) -> tuple[Value, Value, int]:
        """The range of ``count`` rows of a result that this thread computes, in steps of the tile's rows."""
        tiles = (count + (tile.rows - 1)) // tile.rows
        first, last = (which * tiles // threads * tile.rows for which in (thread, thread + 1))
        return first, e.least(last, count), tile.rows

    # dW [G * H, I] and [G * H, H]: a piece of a panel of x or h, laid out for the tile, stays in the cache for
    # all rows of dpre' (its units), and so do the lines of these, each of which several tiles read.
    rows_of_piece = tiling.piece(WIDE) // 2
    panel, row_piece = e.scratch(rows_of_piece * WIDE), e.integer(rows_of_piece)
    is_first_chunk = kernel.slot(e, "begin").compare("==", 0)
    nothing = e.scratch(WIDE)
    for part in range(WIDE):
        e.store(e.zeros(), nothing, part * e.lanes)
    wanted = kernel.slot(e, "dw_ih").compare("!=", 0)
    with e.when(wanted):
        x, previous = kernel.pointer(e, "x"), kernel.pointer(e, f"states.{plan.fed}")
        drec = e.at(down, products.numbers(gate_terms)) if plan.split else down
        for w, w_stride, count, wide, name, dpre in (
            (x, inputs, inputs, tiling.input_wide, "dw_ih", down),
            (previous, width, hidden, tiling.hidden_wide, "dw_hh", drec),
        ):
            out, tile = kernel.pointer(e, name), weight_tiles[wide]
            with (
                e.loop(0, count, wide * e.lanes) as column,
                pieces(e, row_terms, row_piece) as (begin, end),
            ):
                is_first = is_first_chunk & begin.compare("==", 0)
                masks = [e.mask(count - column - part * e.lanes) for part in range(wide)]
                with e.loop(begin, end) as term:
                    k = products.numbers(walked(term))
                    of_term = [first_row + row for row in products.rows(e, k, rows)]
                    if w is x:
                        of_term = [e.load_integer(places, row) for row in of_term]
                    for part, mask in enumerate(masks):
                        values = [e.load_masked(mask, w, row * w_stride + column + part * e.lanes) for row in of_term]
                        value = products.stacked(e, values, k, rows)
                        e.store(value, panel, (term - begin) * (wide * e.lanes) + part * e.lanes)
                with e.loop(*own_tiles(gates, tile)) as unit:
                    place = (e.at(out, unit * count + column), count)
                    with e.loop(tile.rows, 2 * tile.rows) as next_row:  # the next tile begins with these sums
                        for part in range(wide):
                            e.prefetch(place[0], count * next_row + part * e.lanes, write=True)
                    init = (e.choose(is_first, nothing, place[0]), e.choose(is_first, e.integer(0), count))
                    tile.call(
                        e, e.least(gates - unit, e.integer(tile.rows)), place, init,
                        (e.at(dpre, walked(begin) * down_stride + unit), onward, end - begin, panel),
                        columns=count - column,
                    )  # fmt: skip

    # Sums over rows. The buffer's rows are as long as whole panels.
    with e.loop(thread * (WIDE * e.lanes), columns, threads * (WIDE * e.lanes)) as column:
        vectors = [column + part * e.lanes for part in range(WIDE)]
        before = [e.choose(is_first_chunk, nothing, e.at(sums, vector)) for vector in vectors]
        totals = [e.variable(e.vector, e.load(each)) for each in before]
        with e.loop(0, row_terms) as row:
            for vector, total in zip(vectors, totals, strict=True):
                total.set(products.add(e, total.get(), e.load(down, walked(row) * down_stride + vector)))
        for vector, total in zip(vectors, totals, strict=True):
            e.store(total.get(), sums, vector)

    # dx [rows, inputs].
    wide = tiling.input_wide * e.lanes
    packed, dx = kernel.pointer(e, "packed_ih"), kernel.pointer(e, "dx")
    wanted = kernel.slot(e, "dx").compare("!=", 0)
    with (
        e.when(wanted),
        e.loop(0, (inputs + (wide - 1)) // wide) as panel_of_x,
        pieces(e, gate_terms, e.integer(tiling.piece(tiling.input_wide))) as (begin, end),
        e.loop(*own_tiles(rows, input_tile)) as row,
    ):
        out = (e.at(dx, panel_of_x * wide), inputs)
        is_first = begin.compare("==", 0)
        init = (e.choose(is_first, nothing, out[0]), e.choose(is_first, e.integer(0), out[1]))
        input_tile.call(
            e, e.least(rows - row, e.integer(input_tile.rows)), out, init,
            (e.at(chunk, row * stride + begin), stride, end - begin,
             e.at(packed, (panel_of_x * gate_terms + begin) * wide)),
            columns=inputs - panel_of_x * wide, places=e.integer_at(places, first_row + row),
        )  # fmt: skip
    with e.when(wanted & is_first_chunk):
        clear_padding(e, kernel, ["dx"], "inputs")
    e.builder.ret_void()
    return e
