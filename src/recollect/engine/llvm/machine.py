"""The machine at hand: its vectors, and turning IR into code for it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite.binding import ffi

from recollect.engine.llvm.values import SIZE

# llvmlite compiles under one lock of its own; ours also keeps a kernel from being compiled twice.
COMPILING = threading.RLock()


def _wait_for_compilers() -> None:
    COMPILING.acquire()
    ffi.lib._lock.__enter__()


def _let_compilers_go_on() -> None:
    ffi.lib._lock.__exit__()
    COMPILING.release()


# A child has only the thread that forked. A lock that another one held would never be released there, and what
# LLVM was doing under it would stay half done: so nobody compiles while this process forks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_wait_for_compilers, after_in_parent=_let_compilers_go_on, after_in_child=_let_compilers_go_on
    )


@dataclass(frozen=True)
class Machine:
    """What decides the shape of a kernel.

    Attributes:
        cpu, features: as LLVM names them.
        vector_bytes: width of a vector register.
        accumulators: vectors that a tile may keep in registers, leaving room for its operands.
    """

    cpu: str
    features: str
    vector_bytes: int
    accumulators: int

    def lanes(self, dtype: str) -> int:
        return self.vector_bytes // SIZE[dtype]


@lru_cache(maxsize=1)
def host() -> Machine:
    """The machine this process runs on."""
    found = llvm.get_host_cpu_features()
    width, accumulators = 16, 12
    if found.get("avx512f") and found.get("avx512vl"):
        width, accumulators = 64, 24
    elif found.get("avx2"):
        width = 32
    elif found.get("neon"):
        accumulators = 24
    return Machine(llvm.get_host_cpu_name(), found.flatten(), width, accumulators)


def compile_module(text: str, machine: Machine) -> bytes:
    """Optimise a module and return it as an object file.

    LLVM's vectorisers and its unroller stay off: the tile is explicit, and they only cost time.
    """
    with COMPILING:
        target = _target(machine)
        module = llvm.parse_assembly(text)
        module.verify()
        tuning = llvm.create_pipeline_tuning_options(speed_level=2)
        tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = False
        passes = llvm.create_pass_builder(target, tuning)
        passes.getModulePassManager().run(module, passes)
        return target.emit_object(module)


class Code:
    """An object file in memory, ready to run."""

    def __init__(self, object_file: bytes, machine: Machine) -> None:
        with COMPILING:
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target(machine))
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(object_file))
            self._engine.finalize_object()

    def address(self, name: str) -> int:
        return self._engine.get_function_address(name)


def _target(machine: Machine) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=2, jit=True
    )
