"""Code that is the same for every cell: taken from the disk, or compiled and left there."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from recollect.engine.llvm import cache
from recollect.engine.llvm.machine import COMPILING, Code, compile_module, host


def fixed_code(name: str, write: Callable[[], ir.Module]) -> Code:
    """The code of what ``write`` writes, for this machine."""
    with COMPILING:
        key = cache.key(name, host())
        object_file = cache.load(key)
        if object_file is None:
            object_file = compile_module(str(write()), host())
            cache.store(key, object_file)
        return Code(object_file, host())
