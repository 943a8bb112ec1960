"""Kernels for other machines: the right numbers from those that this one can run, good assembly for all."""

from __future__ import annotations

import dataclasses
import platform
import re

import llvmlite.binding as llvm
import pytest
import torch

import recollect
from assembly import MULTIPLY_ADD, STACK, functions, innermost_loops
from recollect import cells
from recollect.engine.llvm import backward, forward, kernels
from recollect.engine.llvm.machine import assembly, compile_module, host, machine
from recollect.engine.llvm.tiling import make_tiling
from recollect.engine.plan import make_plan
from tolerances import GRADIENT, assert_equal

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
AVX2 = {"avx2": True, "fma": True}
AVX512 = AVX2 | {"avx512f": True, "avx512vl": True}
MACHINES = {
    "SSE2": machine(X86, "x86-64", {}),
    "AVX2 haswell": machine(X86, "haswell", AVX2),
    "AVX2 znver2": machine(X86, "znver2", AVX2),
    "AVX-512 skylake": machine(X86, "skylake-avx512", AVX512),
    "AVX-512 znver4": machine(X86, "znver4", AVX512),
    "NEON neoverse-n1": machine(ARM, "neoverse-n1", {"neon": True}),
    "NEON apple-m1": machine("arm64-apple-macosx", "apple-m1", {"neon": True}),
}

BFLOAT16 = {
    f"AVX512-BF16 {cpu}": machine(X86, cpu, AVX512 | {"avx512bf16": True}) for cpu in ("znver4", "sapphirerapids")
}


# Right numbers ------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the machines are of the x86-64 family")
@pytest.mark.parametrize("name", ["AVX2 haswell", "SSE2"])
@pytest.mark.parametrize(("cell", "inputs"), [("gru", 5), ("peephole_lstm", 13)])
def test_kernels_for_a_lesser_machine(name, cell, inputs, monkeypatch):
    if "AVX2" in name and host().vector_bytes < 32:
        pytest.skip("this machine has no AVX2")
    monkeypatch.setattr(kernels, "host", lambda: dataclasses.replace(MACHINES[name], triple=""))
    monkeypatch.setattr(kernels, "_CACHE", {})
    layer = recollect.nn.Recurrent(cells.by_name(cell), inputs, 19)
    x = torch.randn(6, 7, inputs, requires_grad=True)
    found = []
    for backend in ("llvm", "reference"):
        with recollect.set_backend(backend):
            y, _ = layer(x, lengths=[6, 0, 3, 4, 1, 6, 2])
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    for ours, true in zip(*found, strict=True):
        assert_equal(ours, true, GRADIENT)


# Good assembly ------------------------------------------------------------------------------------

_TILE = re.compile(r"(tile|carry|weight_\d|input)_(\d)")  # the last digit: its rows


@pytest.fixture(scope="module", autouse=True)
def _targets():
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def tile_loops(cell, dtype, machine, vectors_in, vectors_hidden, *, bfloat16=False):
    """The innermost loops of all tiles of a cell's kernels: (tile, rows, instructions)."""
    plan = make_plan(cell.graph, cell.gates, cell.states, cell.vectors)
    lanes = machine.lanes(dtype)
    tiling = make_tiling(plan, machine, dtype, vectors_in * lanes, vectors_hidden * lanes, bfloat16=bfloat16)
    forwards = [forward.write(plan, each, save=True, fetching=True) for each in {tiling, tiling.for_one_row()}]
    for kernel in (*forwards, backward.write(plan, tiling, fetching=True)):  # those that need most registers
        for name, blocks in functions(assembly(str(kernel.module), machine)).items():
            tile = _TILE.fullmatch(name)
            if tile:
                for loop in innermost_loops(blocks):
                    yield tile[1], int(tile[2]), loop


def multiply_adds(loop):
    return sum(bool(MULTIPLY_ADD.match(code)) for code in loop)


def check(cell, dtype, machine, vectors_in, vectors_hidden, *, bfloat16=False):
    """Every accumulator of every tile stays in its register, and every address too."""
    tallest = {}
    sizes = (vectors_in, vectors_hidden)
    for tile, rows, loop in tile_loops(cells.by_name(cell), dtype, machine, *sizes, bfloat16=bfloat16):
        spilled = [code for code in loop if STACK.match(code)]
        assert not spilled, f"{tile} of {rows} rows: {spilled}"
        count = multiply_adds(loop)
        assert count
        assert count % rows == 0
        assert sum(code.startswith("vdpbf16ps") for code in loop) == count * bfloat16
        assert not any(code.startswith("vcvt") for code in loop)
        tallest[tile] = max(tallest.get(tile, 0), count)
    assert tallest.keys() >= {"tile", "carry", "input", f"weight_{vectors_in}", f"weight_{vectors_hidden}"}
    # The tiles are as large as registers allow.
    plan, lanes = _plan(cell), machine.lanes(dtype)
    tiling = make_tiling(plan, machine, dtype, vectors_in * lanes, vectors_hidden * lanes)
    wides = {each: plan.widest_run * each.unit_vectors for each in (tiling, tiling.for_one_row())}
    assert tallest["tile"] == max(wide * each.rows(wide) for each, wide in wides.items())
    assert tallest["carry"] == vectors_hidden * tiling.rows(vectors_hidden)
    assert tallest["input"] == vectors_in * tiling.rows(vectors_in)
    assert tallest[f"weight_{vectors_hidden}"] == tallest["carry"]
    assert tallest["carry"] >= 0.6 * machine.accumulators or vectors_hidden == 1


def _plan(name):
    cell = cells.by_name(name)
    return make_plan(cell.graph, cell.gates, cell.states, cell.vectors)


@pytest.mark.parametrize(
    ("vectors", "wide"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (7, 4), (9, 3), (13, 2), (17, 3), (25, 2)]
)
def test_panels_are_wide_without_much_room_unused(vectors, wide):
    tiling = make_tiling(_plan("lstm"), MACHINES["AVX2 znver2"], "float32", 8 * vectors, 8 * vectors - 3)
    assert (tiling.input_wide, tiling.hidden_wide) == (wide, wide)


QUICK = [("lstm", "float32", 3, 4), ("gru", "float64", 2, 4), ("rnn_tanh", "float32", 1, 2)]
CELLS = ["lstm", "gru", "rnn_tanh", "peephole_lstm", "slstm"]
FULL = [
    (cell, dtype, *sizes) for cell in CELLS for dtype in ("float32", "float64") for sizes in ((3, 4), (2, 4), (1, 2))
]


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("case", QUICK, ids=str)
def test_no_tile_spills(name, case):
    check(case[0], case[1], MACHINES[name], *case[2:])


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("case", [case for case in FULL if case not in QUICK], ids=str)
def test_no_tile_of_any_cell_spills(name, case):
    check(case[0], case[1], MACHINES[name], *case[2:])


@pytest.mark.parametrize(("name", "store"), [("AVX2 haswell", "vmovnt"), ("SSE2", "movnt")])
def test_zeros_of_padding_go_past_the_caches(name, store):
    plan, machine = _plan("lstm"), MACHINES[name]
    tiling = make_tiling(plan, machine, "float32", 16, 16)
    for kernel in (forward.write(plan, tiling, save=False), backward.write(plan, tiling)):
        assert store in assembly(str(kernel.module), machine)


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BFLOAT16)
def test_products_of_pairs_are_one_instruction_each(name, cell):
    check(cell, "float32", BFLOAT16[name], 3, 4, bfloat16=True)


@pytest.mark.parametrize("name", BFLOAT16)
def test_operands_are_rounded_by_one_instruction(name):
    plan, machine = _plan("gru"), BFLOAT16[name]
    tiling = make_tiling(plan, machine, "float32", 16, 16, bfloat16=True)
    for kernel, rounding in (
        (forward.write(plan, tiling, save=False), {"pack_units", "steps"}),
        (backward.write(plan, tiling), {"pack", "steps", "products"}),
    ):
        text = assembly(str(kernel.module), machine)
        found = {
            name
            for name, blocks in functions(text).items()
            if any(code.startswith(("vcvtneps2bf16", "vcvtne2ps2bf16")) for block in blocks for code in block.code)
        }
        assert found == rounding


@pytest.mark.parametrize("name", ["AVX2 haswell", "AVX-512 znver4", "NEON neoverse-n1"])
def test_a_spill_would_be_seen(name):
    """Four rows more than fit."""
    crowded = dataclasses.replace(MACHINES[name], accumulators=MACHINES[name].accumulators + 16)
    loops = list(tile_loops(cells.lstm, "float32", crowded, 4, 4))
    assert any(STACK.match(code) for _, _, loop in loops for code in loop)


def test_what_has_avx512_bf16_multiplies_in_bfloat16():
    assert {each.bfloat16 for each in BFLOAT16.values()} == {"native"}
    assert not any(each.bfloat16 for each in MACHINES.values())
    assert not machine(X86, "znver4", {"avx512bf16": True}).bfloat16


def test_the_host_is_one_of_them():
    shapes = {(each.vector_bytes, each.accumulators) for each in MACHINES.values()}
    assert (host().vector_bytes, host().accumulators) in shapes


@pytest.mark.parametrize("name", MACHINES)
def test_object_code_for_every_machine(name):
    plan = _plan("lstm")
    made = forward.write(plan, make_tiling(plan, MACHINES[name], "float32", 4, 4), save=False)
    code = compile_module(str(made.module), MACHINES[name])
    assert code[:4] == (b"\xcf\xfa\xed\xfe" if "apple" in name else b"\x7fELF")
