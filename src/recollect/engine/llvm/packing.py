"""How the forward kernel lays out weights and biases once a call, so that its tile reads them from end to end."""

from __future__ import annotations

from llvmlite import ir

from recollect.engine.llvm.kernel import Kernel, Share, pack_vectors
from recollect.engine.llvm.values import I64, POINTER, Emitter, Value
from recollect.engine.plan import Plan


class Packed:
    """Where packed weights and biases are.

    Attributes:
        row_lengths: numbers in a packed row of W_ih, and of W_hh.
        before: numbers of a unit block before its part of W_hh.
        length: numbers of a unit block.
    """

    def __init__(self, e: Emitter, kernel: Kernel, plan: Plan) -> None:
        self._e, self._tiling, self._count = e, kernel.tiling, len(plan.accumulators)
        block, terms = kernel.tiling.block, kernel.products.terms
        self.row_lengths = len(plan.input_gates) * block, len(plan.recurrent_gates) * block
        self.before = terms(kernel.slot(e, "inputs")) * self.row_lengths[0]
        self.length = self.before + terms(kernel.slot(e, "hidden")) * self.row_lengths[1]
        self._weights, self._biases = kernel.pointer(e, "packed"), kernel.pointer(e, "packed_bias")

    def weights(self, unit_block: Value) -> Value:
        """Those of a unit block: [term of k][accumulator][unit], first of W_ih and then of W_hh."""
        return self._e.at(self._weights, unit_block * self.length)

    def biases(self, group: Value, which: Value, place: int = 0) -> Value:
        """Those of one of a group's unit blocks and an accumulator; in all [group][accumulator][unit]."""
        tiling = self._tiling
        return self._e.at(self._biases, (group * self._count + place) * tiling.group + which * tiling.block)


def write_pack(kernel: Kernel, plan: Plan) -> Emitter:
    """Lay the weights out as the tile reads them: [unit block][term of k][accumulator][unit]; add the biases."""
    pack_units = _write_pack_units(kernel)
    e = kernel.stage("pack")
    tiling, block = kernel.tiling, kernel.tiling.block
    hidden, width, inputs = (kernel.slot(e, name) for name in ("hidden", "width", "inputs"))
    packed = Packed(e, kernel, plan)
    share, (_, thread, threads) = Share(e, kernel), e.arguments
    # Where threads share units, each lays out what it will read; otherwise they take turns.
    first, last = (group * tiling.group_blocks for group in share.of_units(width // tiling.group))
    first, onward = e.choose(share.by_units, first, thread), e.choose(share.by_units, e.integer(1), threads)
    with e.loop(first, last, onward) as unit_block:
        for kind, start, count in (("inp", e.integer(0), inputs), ("rec", packed.before, hidden)):
            gates = plan.input_gates if kind == "inp" else plan.recurrent_gates
            source = kernel.pointer(e, "w_ih" if kind == "inp" else "w_hh")
            target = e.at(packed.weights(unit_block), start)
            row_length = e.integer(len(gates) * block)
            for position, gate in enumerate(gates):
                for part in range(tiling.unit_vectors):
                    offset = part * e.lanes
                    e.call(
                        pack_units, e.at(source, hidden * gate * count), e.at(target, position * block + offset),
                        unit_block * block + offset, hidden, count, row_length,
                    )  # fmt: skip
        # Biases: [group][accumulator][unit], as the sums lie.
        group = unit_block // tiling.group_blocks
        which = unit_block - group * tiling.group_blocks
        for place, name in enumerate(plan.accumulators):
            kind, _, gate_name = name.partition(".")
            gate = plan.gates.index(gate_name)
            for part in range(tiling.unit_vectors):
                unit = unit_block * block + part * e.lanes
                total = e.variable(e.vector, e.zeros())
                for bias, kinds in (("b_ih", ("pre", "inp")), ("b_hh", ("pre", "rec"))):
                    pointer = kernel.pointer(e, bias)
                    if kind in kinds:
                        with e.when(kernel.slot(e, bias).compare("!=", 0)):
                            found = e.load_masked(e.mask(hidden - unit), pointer, hidden * gate + unit)
                            total.set(total.get() + found)
                e.store(total.get(), packed.biases(group, which, place), part * e.lanes)
    pack_vectors(e, kernel, plan)
    e.builder.ret_void()
    return e


def _write_pack_units(kernel: Kernel) -> ir.Function:
    """Transpose one vector of units of one gate: ``column[term][unit] = w[first + unit][k]``, 0 for units past H.

    A function, because to write its shuffles for every gate takes most of the time that a kernel takes to compile.
    """
    e = kernel.function("pack_units", POINTER, POINTER, I64, I64, I64, I64)
    e.function.attributes.add("noinline")
    w, column, first, hidden, count, row_length = e.arguments
    products = kernel.products
    per_vector = e.lanes * products.per_term
    whole = count // per_vector * per_vector
    # Square blocks [units, terms] are transposed in registers; what is left of k, one by one.
    with e.loop(0, whole, per_vector) as k:
        rows = []
        for lane in range(e.lanes):
            real = first + lane < hidden
            row = e.choose(real, first + lane, e.integer(0))
            masks = products.masks(e, e.choose(real, e.integer(per_vector), e.integer(0)))
            rows.append(products.load(e, masks, w, row * count + k))
        term = products.terms(k)
        for step, values in enumerate(e.transposed(rows)):
            e.store(values, column, (term + step) * row_length)
    zero = Value(e.builder, e.element(0.0))
    with e.loop(0, e.lanes) as lane:
        row = e.at(w, (first + lane) * count)
        end = e.choose(first + lane < hidden, count, whole)
        with e.loop(whole, end, products.per_term) as k:
            e.store_one(products.load_one(e, row, k, count), column, products.terms(k) * row_length + lane)
        with e.loop(end, count, products.per_term) as k:
            e.store_one(zero, column, products.terms(k) * row_length + lane)
    e.builder.ret_void()
    return e.function
