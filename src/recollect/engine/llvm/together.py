"""Kernels of one thread each side by side, on as many threads as there are.

Two directions of a layer know nothing of each other; where one of them alone cannot use a second thread, both can. Two
layers can where they go through time in chunks: one takes a chunk while the layer before it is at the next.

Work comes in *strands*: a first call, then one for each chunk of steps, which needs the strand before to be through the
same chunk. Here the rows are strands, and the columns diagonals of calls that do not need each other:

    0  1  2  3  .  .        0: the weights are packed; 1, 2, 3: the chunks
    .  0  1  2  3  .
    .  .  0  1  2  3

Whoever is free takes the next call, column by column, and waits for those that it needs: the one on its left and, of
these, the one above. Both were taken before, so that however few threads there are, down to one, all calls are made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from recollect.engine.llvm.fixed import fixed_code
from recollect.engine.llvm.kernel import APART, COMMON, Kernel
from recollect.engine.llvm.kernels import Function
from recollect.engine.llvm.machine import host
from recollect.engine.llvm.problem import Parts, Pass
from recollect.engine.llvm.team import Team
from recollect.engine.llvm.tiling import without_tiles
from recollect.engine.llvm.values import I64, POINTER, VOID, Value


class Strand(NamedTuple):
    """Calls that follow each other.

    Attributes:
        first: the address of the kernel's entry that is called first.
        then: that of the one that is called for each chunk; 0 where there are none.
        arguments: the kernel's, in which ``begin`` and ``end`` are set for each chunk.
    """

    first: int
    then: int
    arguments: ctypes.Array[ctypes.c_int64]


# ``table`` [strands][3] is each strand with the address of its arguments; ``counts`` [1 + strands][APART] says how many
# calls were taken in all, then for each strand how many of its calls are over.
_ARGUMENTS = ("rounds", "chunk_steps", "strands", "table", "counts")


def write() -> Kernel:
    """Write the kernel that calls the others."""
    kernel = Kernel(without_tiles("float32", 1, host().pause), _ARGUMENTS)  # it has no numbers of its own
    wait, e = _write_wait(kernel), kernel.stage("calls")
    table, counts = kernel.pointer(e, "table"), kernel.pointer(e, "counts")
    rounds, strands, chunk = (kernel.slot(e, name) for name in ("rounds", "strands", "chunk_steps"))
    one = e.integer(1).ir
    with e.loop(0, 1 << 62):
        taken = Value(e.builder, e.builder.atomic_rmw("add", counts.ir, one, "monotonic"))
        diagonal = taken // strands
        strand = taken - diagonal * strands
        number = diagonal - strand
        with e.when(diagonal >= rounds + strands - 1):
            e.builder.ret_void()
        with e.when((number >= 0) & (number < rounds)):
            above, own = (e.integer_at(counts, (strand + place) * APART) for place in (0, 1))
            e.call(wait, e.arguments[0], own, number)
            first, then, address = (e.load_integer(table, strand * 3 + place) for place in range(3))
            arguments = Value(e.builder, e.builder.inttoptr(address.ir, POINTER))
            begin, end, steps = (e.integer_at(arguments, COMMON.index(name)) for name in ("begin", "end", "steps"))
            with e.when(number > 0):
                with e.when(strand > 0):
                    e.call(wait, e.arguments[0], above, number + 1)
                e.builder.store(((number - 1) * chunk).ir, begin.ir)
                e.builder.store(e.least(number * chunk, e.load_integer(steps, 0)).ir, end.ir)
            e.call_address(e.choose(number > 0, then, first), ir.FunctionType(VOID, [POINTER]), arguments.ir)
            e.builder.atomic_rmw("add", own.ir, one, "release")
    e.builder.unreachable()
    entry = kernel.entry("together")
    kernel.run(entry, e, kernel.slot(entry, "threads"))
    entry.builder.ret_void()
    return kernel


def _write_wait(kernel: Kernel) -> ir.Function:
    """Wait until so many calls of a strand are over."""
    e = kernel.function("wait", POINTER, POINTER, I64)
    _, over, wanted = e.arguments
    kernel.return_when(e, lambda: e.load_acquired(over) >= wanted)
    e.builder.unreachable()
    return e.function


def run_together(strands: Sequence[Strand], threads: int, team: Team, chunks: int = 0, chunk_steps: int = 0) -> None:
    """Run kernels, each on one thread, at the same time.

    Args:
        strands: what is run.
        threads, team: how many threads, and where they come from.
        chunks, chunk_steps: how many chunks of how many steps follow on the first calls; the last may be shorter.
    """
    table = np.array([(*calls, ctypes.addressof(arguments)) for *calls, arguments in strands], np.int64)
    counts = np.zeros((1 + len(strands), APART), np.int64)
    kernel = _kernel(threads, team)
    addresses = [1 + chunks, chunk_steps, len(strands), table.ctypes.data, counts.ctypes.data]
    kernel.run(kernel.arguments(addresses))


@lru_cache(maxsize=16)
def _kernel(threads: int, team: Team) -> Pass:
    return Pass(_function(), team.slots | {"threads": team.size(threads)}, _ARGUMENTS, Parts())


@cache
def _function() -> Function:
    return Function("together", (*COMMON, *_ARGUMENTS), fixed_code("together", lambda: write().module))
