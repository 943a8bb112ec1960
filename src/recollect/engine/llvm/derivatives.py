"""The part of the backward kernel that is printed from the plan: the derivatives of a step."""

from __future__ import annotations

from recollect.engine.llvm.functions import VectorTarget
from recollect.engine.llvm.kernel import Kernel, Step, load_given
from recollect.engine.llvm.values import I16, Emitter, Value, constant
from recollect.engine.plan import FED, Plan


def gate_kinds(plan: Plan) -> tuple[str, ...]:
    """Of which gradients the buffer of a chunk has all gates."""
    return ("dinp", "drec") if plan.split else ("dinp",)


def sum_names(plan: Plan) -> tuple[str, ...]:
    """What a row of a chunk's buffer holds, H numbers each; the kernel also sums them over rows."""
    gates = (f"{kind}.{gate}" for kind in gate_kinds(plan) for gate in plan.gates)
    return (*gates, *(f"dvec.{name}" for name in plan.vectors))


class Derivatives:
    """The derivatives of a step, for one row and one vector of units.

    Addresses are read from the arguments here, once: LLVM cannot know that no store changes them.
    """

    def __init__(self, e: Emitter, kernel: Kernel, plan: Plan) -> None:
        self._e, self._kernel, self._plan, self._target = e, kernel, plan, VectorTarget(e)
        names = [f"{kind}.{state}" for kind in ("states", "grad") for state in plan.states]
        names += [f"dy.{state}" for state in plan.outputs]
        self._watched = [f"leaving.{state}" for state in plan.own_states if f"leaving.{state}" in kernel.slots]
        names += self._watched
        self._at = {name: kernel.pointer(e, name) for name in (*names, "places", "saved", "chunk", "packed_vectors")}
        sizes = ("hidden", "width", "grad_width", "chunk_stride", *(f"dy_stride.{state}" for state in plan.outputs))
        self._sizes = {name: kernel.slot(e, name) for name in sizes}
        # Numbers that the gates of a kind lack to be whole pairs.
        self._lacking = self._sizes["hidden"] * len(plan.gates) & 1 if kernel.tiling.bfloat16 else None

    def write(self, step: Step, first_row: Value, row: Value, unit: Value) -> None:
        e, plan, sizes, at = self._e, self._plan, self._sizes, step.row + row
        mask, place_of_row = e.mask(sizes["hidden"] - unit), e.load_integer(self._at["places"], at)
        of_row, of_grad = at * sizes["width"] + unit, row * sizes["grad_width"] + unit
        leaves = {}
        for state in plan.states:
            leaves[f"prev.{state}"] = e.load(self._at[f"states.{state}"], of_row)
            leaves[f"grad.{state}"] = e.load(self._at[f"grad.{state}"], of_grad)
        for state in plan.outputs:
            of_dy = place_of_row * sizes[f"dy_stride.{state}"] + unit
            leaves[f"grad.{state}"] = leaves[f"grad.{state}"] + e.load_masked(mask, self._at[f"dy.{state}"], of_dy)
        for place in range(plan.saved):
            of_saved = (at * plan.saved + place) * sizes["width"] + unit
            leaves[f"saved.{place}"] = e.load(self._at["saved"], of_saved)
        for place, name in enumerate(plan.vectors):
            leaves[f"vec.{name}"] = e.load(self._at["packed_vectors"], sizes["width"] * place + unit)
        leaves |= load_given(e, self._kernel, plan, place_of_row, row, unit, mask)
        if self._watched:
            self._write_leaving(leaves, of_row)
        results = plan.backward.evaluate(leaves, self._target)
        products, chunk = self._kernel.products, self._at["chunk"]
        row_of_chunk = products.numbers((at - first_row) * sizes["chunk_stride"])
        of_chunk = row_of_chunk + unit
        for place, name in enumerate(sum_names(plan)):
            products.store_masked(e, results[name], mask, chunk, of_chunk + self._column(place))
        if self._lacking is not None:
            self._fill_up(row_of_chunk, unit, self._lacking)
        for state in plan.states:
            e.store(results[f"dprev.{state}"], self._at[f"grad.{state}"], of_grad)

    def _write_leaving(self, leaves: dict[str, Value], of_row: Value) -> None:
        """Write dL/ds of each state; that of the output also counts the way through its copy that W_hh multiplies."""
        for name in self._watched:
            state = name.partition(".")[2]
            grad = leaves[f"grad.{state}"]
            if state == self._plan.states[0] and self._plan.fed == FED:
                grad = grad + leaves[f"mask.{state}"] * leaves[f"grad.{FED}"]
            self._e.store(grad, self._at[name], of_row)

    def _column(self, place: int) -> Value:
        """Where in a row of the chunk the numbers of one of `sum_names` begin."""
        column, kinds = self._sizes["hidden"] * place, min(place // len(self._plan.gates), len(gate_kinds(self._plan)))
        return column if self._lacking is None else column + self._lacking * kinds

    def _fill_up(self, row_of_chunk: Value, unit: Value, lacking: Value) -> None:
        """Write the 0 that the last pair of each kind's gates may lack; with the last unit, so that one thread does."""
        e, hidden, gates = self._e, self._sizes["hidden"], len(self._plan.gates)
        with e.when(lacking.compare("!=", 0) & (unit < hidden) & (unit + e.lanes >= hidden)):
            for kind in range(len(gate_kinds(self._plan))):
                place = row_of_chunk + self._column(kind * gates) + hidden * gates
                e.halves().store_one(Value(e.builder, constant(I16, 0)), self._at["chunk"], place)
