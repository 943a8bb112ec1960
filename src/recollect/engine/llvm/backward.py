"""The backward kernel: dL/d(pre-activations) at every step, and dL/d(states) carried back through time.

    for each step, last first:
        for each block of rows of this thread:
            the derivatives:  dpre and the direct part of dL/dstate, printed from the plan's backward graph
        for each panel of W_hh:
            for each block of rows of this thread:
                the tile:     dL/dh of the step before += dpre W_hh

``grad.s`` [B, panel width] holds dL/ds of the rows' present step: at the start the gradients of the final
states, at the end those of the initial states. The weight gradients are products of whole matrices,
dpre^T x and dpre^T h, left to the caller; sums over rows (biases, vectors) are taken here, one row of
``sums`` a thread.
"""

from __future__ import annotations

from recollect.engine.llvm.functions import VectorTarget
from recollect.engine.llvm.kernel import (
    PANEL,
    Kernel,
    Shape,
    call_tile,
    own_blocks,
    pack_vectors,
    walk,
    write_tiles,
)
from recollect.engine.llvm.values import Emitter, Value
from recollect.engine.plan import Plan


def slots(plan: Plan) -> tuple[str, ...]:
    """The argument slots after the common ones."""
    return (
        "panel_width", "dy", "dy_stride", "dinp", "drec", "sums", "saved", "packed_vectors",
        *(f"{kind}.{state}" for kind in ("states", "grad") for state in plan.states),
        *(f"vector.{name}" for name in plan.vectors),
    )  # fmt: skip


def sum_names(plan: Plan) -> tuple[str, ...]:
    """The results that are summed over rows, in the order of ``sums``."""
    kinds = ("dinp", "drec") if plan.split else ("dinp",)
    return (
        *(f"{kind}.{gate}" for kind in kinds for gate in plan.gates),
        *(f"dvec.{name}" for name in plan.vectors),
    )


def write(plan: Plan, shape: Shape) -> Kernel:
    """Write the kernel."""
    kernel = Kernel(shape, slots(plan))
    kernel.entry("backward", [_write_pack(kernel, plan), _write_body(kernel, plan)])
    return kernel


def _write_pack(kernel: Kernel, plan: Plan) -> Emitter:
    """Lay W_hh out as the tile reads it: [panel][gate and unit][PANEL vectors]."""
    e = kernel.stage("pack")
    hidden, panel_width = kernel.slot(e, "hidden"), kernel.slot(e, "panel_width")
    source, packed = kernel.pointer(e, "w_hh"), kernel.pointer(e, "packed")
    rows, columns = hidden * len(plan.gates), PANEL * e.lanes
    with e.loop(e.arguments[1], panel_width // columns, e.arguments[2]) as panel:
        masks = [e.mask(hidden - panel * columns - part * e.lanes) for part in range(PANEL)]
        with e.loop(0, rows) as k:
            for part, mask in enumerate(masks):
                value = e.load_masked(mask, source, k * hidden + panel * columns + part * e.lanes)
                e.store(value, packed, (panel * rows + k) * columns + part * e.lanes)
    pack_vectors(e, kernel, plan)
    e.builder.ret_void()
    return e


def _write_body(kernel: Kernel, plan: Plan) -> Emitter:
    shape = kernel.shape
    tiles = write_tiles(kernel, PANEL, shape.panel_rows, [(0, PANEL)], "panel")
    e = kernel.stage("walk")
    hidden, width, panel_width = (kernel.slot(e, name) for name in ("hidden", "width", "panel_width"))
    gates = hidden * len(plan.gates)
    drec, packed = kernel.pointer(e, "drec"), kernel.pointer(e, "packed")
    dh = kernel.pointer(e, f"grad.{plan.states[0]}")
    columns = PANEL * e.lanes

    backward_in_time = kernel.slot(e, "backward_in_time").compare("!=", 0)
    forward_in_time = Value(e.builder, e.builder.not_(backward_in_time.ir))
    with walk(e, kernel, descending=forward_in_time) as step:
        with own_blocks(e, kernel, step.active) as (start, rows), e.loop(0, width, e.lanes) as unit:
            _write_derivatives(e, kernel, plan, step.row, start, rows, unit)
        with e.loop(0, panel_width // columns) as panel, own_blocks(e, kernel, step.active) as (start, rows):
            place = e.at(dh, start * panel_width + panel * columns)
            call_tile(
                e, tiles, rows, place, panel_width, place, panel_width,
                e.at(drec, (step.row + start) * gates), gates, gates, e.at(packed, panel * gates * columns),
            )  # fmt: skip
    e.builder.ret_void()
    return e


def _write_derivatives(
    e: Emitter, kernel: Kernel, plan: Plan, step_row: Value, start: Value, rows: Value, unit: Value
) -> None:
    """One vector of units, for the rows of one block."""
    target = VectorTarget(e)
    hidden, width, panel_width = (kernel.slot(e, name) for name in ("hidden", "width", "panel_width"))
    dy, dy_stride, saved = kernel.pointer(e, "dy"), kernel.slot(e, "dy_stride"), kernel.pointer(e, "saved")
    dinp, drec, vectors = (kernel.pointer(e, name) for name in ("dinp", "drec", "packed_vectors"))
    names = sum_names(plan)
    sums = e.at(kernel.pointer(e, "sums"), e.arguments[1] * (width * len(names)) + unit)
    totals = {name: e.variable(e.vector) for name in names}
    for place, name in enumerate(names):
        totals[name].set(e.load(sums, width * place))
    mask = e.mask(hidden - unit)
    with e.loop(0, rows) as offset:
        row = start + offset
        at = step_row + row
        leaves = {}
        for state in plan.states:
            leaves[f"prev.{state}"] = e.load(kernel.pointer(e, f"states.{state}"), at * width + unit)
            leaves[f"grad.{state}"] = e.load(kernel.pointer(e, f"grad.{state}"), row * panel_width + unit)
        output = f"grad.{plan.states[0]}"
        leaves[output] = leaves[output] + e.load_masked(mask, dy, at * dy_stride + unit)
        for place in range(plan.saved):
            leaves[f"saved.{place}"] = e.load(saved, (at * plan.saved + place) * width + unit)
        for place, name in enumerate(plan.vectors):
            leaves[f"vec.{name}"] = e.load(vectors, width * place + unit)
        results = plan.backward.evaluate(leaves, target)
        for pointer, kind in ((dinp, "dinp"), (drec, "drec")):
            if kind == "dinp" or plan.split:
                for place, gate in enumerate(plan.gates):
                    where = (at * len(plan.gates) + place) * hidden + unit
                    e.store_masked(results[f"{kind}.{gate}"], mask, pointer, where)
        for state in plan.states:
            e.store(results[f"dprev.{state}"], kernel.pointer(e, f"grad.{state}"), row * panel_width + unit)
        for name in names:
            totals[name].set(totals[name].get() + results[name])
    for place, name in enumerate(names):
        e.store(totals[name].get(), sums, width * place)
