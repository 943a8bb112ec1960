"""Kernels side by side: each of some threads runs one of them from beginning to end.

The two directions of a layer know nothing of each other; where one of them alone cannot use a second thread, both can.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np

from recollect.engine.llvm.fixed import fixed_code
from recollect.engine.llvm.kernel import COMMON, Kernel
from recollect.engine.llvm.kernels import Function
from recollect.engine.llvm.problem import Parts, Pass
from recollect.engine.llvm.team import Team
from recollect.engine.llvm.tiling import without_tiles
from recollect.engine.llvm.values import POINTER, VOID, Value, ir

# ``table`` [count][2] is the address of a kernel and that of its arguments.
_ARGUMENTS = ("count", "table")
Call = tuple[int, "ctypes.Array[ctypes.c_int64]"]


def write() -> Kernel:
    """Write the kernel that calls the others."""
    kernel = Kernel(without_tiles("float32", 1), _ARGUMENTS)  # it has no numbers of its own
    e = kernel.stage("calls")
    table, thread, threads = kernel.pointer(e, "table"), e.arguments[1], e.arguments[2]
    with e.loop(thread, kernel.slot(e, "count"), threads) as call:
        address, arguments = (e.load_integer(table, call * 2 + place) for place in (0, 1))
        pointer = Value(e.builder, e.builder.inttoptr(arguments.ir, POINTER))
        e.call_address(address, ir.FunctionType(VOID, [POINTER]), pointer.ir)
    e.builder.ret_void()
    entry = kernel.entry("together")
    kernel.run(entry, e, kernel.slot(entry, "threads"))
    entry.builder.ret_void()
    return kernel


def run_together(calls: Sequence[Call], team: Team) -> None:
    """Run kernels, each of one thread, at the same time.

    Args:
        calls: of each the address and the arguments.
        team: where their threads come from.
    """
    table = np.array([(address, ctypes.addressof(arguments)) for address, arguments in calls], np.int64)
    _kernel(len(calls), team).run([len(calls), table.ctypes.data])


@lru_cache(maxsize=16)
def _kernel(count: int, team: Team) -> Pass:
    return Pass(_function(), team.slots | {"threads": team.size(count)}, _ARGUMENTS, Parts())


@cache
def _function() -> Function:
    return Function("together", (*COMMON, *_ARGUMENTS), fixed_code("together", lambda: write().module))
