"""Denormal numbers count as 0 while a kernel runs.

What decays (the states of a sequence that ends in silence, a gradient that flows far back) spends long stretches as
numbers too small to have all their digits, and many machines compute with these a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from recollect.engine.llvm.values import I64, POINTER, VOID, Emitter

_I32 = ir.IntType(32)
_MXCSR_BITS = 0x8040  # flush to zero, denormals are zeros
_FPCR_BIT = 1 << 24  # FZ: both


@contextmanager
def flushed(e: Emitter, register: str) -> Iterator[None]:
    """Call a function with denormal numbers taken for 0; then this thread's mode is again what it was.

    Only a call that is not inlined may stand in the block: LLVM does not know that arithmetic depends on the mode.

    Args:
        register: `Machine.mode_register`; where it is empty, the mode is left alone.
    """
    if register == "mxcsr":
        before, during = _room(e), _room(e)
        e.call_llvm("llvm.x86.sse.stmxcsr", VOID, before)
        mode = e.builder.load(before, typ=_I32)
        e.builder.store(e.builder.or_(mode, ir.Constant(_I32, _MXCSR_BITS)), during)
        e.call_llvm("llvm.x86.sse.ldmxcsr", VOID, during)
        yield
        e.call_llvm("llvm.x86.sse.ldmxcsr", VOID, before)
    elif register == "fpcr":
        mode = e.call_llvm("llvm.aarch64.get.fpcr", I64)
        e.call_llvm("llvm.aarch64.set.fpcr", VOID, e.builder.or_(mode.ir, ir.Constant(I64, _FPCR_BIT)))
        yield
        e.call_llvm("llvm.aarch64.set.fpcr", VOID, mode)
    else:
        yield


def _room(e: Emitter) -> Any:
    with e.builder.goto_entry_block():
        return e.builder.bitcast(e.builder.alloca(_I32), POINTER)
