"""The machine at hand: its vectors, and turning IR into code for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import llvmlite
import llvmlite.binding as llvm
from llvmlite.binding import ffi

from recollect.engine.llvm.values import SIZE
from recollect.errors import BackendError

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
        triple: as LLVM names the architecture and system; none for that of this process.
        pause: LLVM's name of the instruction for loops that wait; empty where it is not known.
        mode_register: what holds the mode in which denormal numbers count as 0 (`denormals.flushed`); empty likewise.
        bfloat16: how it multiplies in bfloat16: ``"native"`` with AVX512-BF16, else not at all (empty). Tests set
            ``"emulated"``: see `products.Pairs`.
    """

    cpu: str
    features: str
    vector_bytes: int
    accumulators: int
    triple: str = ""
    pause: str = ""
    mode_register: str = ""
    bfloat16: str = ""

    def lanes(self, dtype: str) -> int:
        return self.vector_bytes // SIZE[dtype]

    def check_bfloat16(self) -> None:
        """Raise BackendError where it cannot multiply in bfloat16."""
        if not self.bfloat16:
            raise BackendError(
                "this CPU cannot multiply in bfloat16",
                given=self.cpu,
                expected="a CPU with AVX512-BF16",
                remedy='recollect.set_precision("float32")',
            )


def machine(triple: str, cpu: str, features: Mapping[str, bool]) -> Machine:
    """Choose the shape of vectors and tiles for a machine.

    No tile that fits into ``accumulators`` spills: tests/engine/test_machines.py reads the assembly. There are
    32 registers with AVX-512 and on AArch64, 16 elsewhere, and without FMA the product takes another one.
    """
    bfloat16 = ""
    if triple.startswith(("aarch64", "arm64")):
        width, accumulators = 16, 24
    elif features.get("avx512f") and features.get("avx512vl"):
        width, accumulators = 64, 24
        bfloat16 = "native" if features.get("avx512bf16") else ""
    elif features.get("avx2") and features.get("fma"):
        width, accumulators = 32, 12
    else:
        width, accumulators = 16, 10
    flat = ",".join(f"{'+' if features[name] else '-'}{name}" for name in sorted(features))
    pause = "llvm.x86.sse2.pause" if triple.startswith("x86_64") else ""
    register = {"x86_64": "mxcsr", "aarch64": "fpcr", "arm64": "fpcr"}.get(triple.partition("-")[0], "")
    return Machine(cpu, flat, width, accumulators, triple, pause, register, bfloat16)


@lru_cache(maxsize=1)
def host() -> Machine:
    """The machine this process runs on."""
    return machine(llvm.get_default_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features())


def compile_module(text: str, machine: Machine) -> bytes:
    """Optimise a module and return it as an object file."""
    with COMPILING:
        target = _target(machine)
        return target.emit_object(_optimised(text, target))


def assembly(text: str, machine: Machine) -> str:
    """The same as text, to look at."""
    with COMPILING:
        target = _target(machine)
        return target.emit_assembly(_optimised(text, target))


def _optimised(text: str, target: llvm.TargetMachine) -> llvm.ModuleRef:
    """Parse a module and simplify it, before LLVM's code generator chooses instructions.

    A kernel is written as it should be computed: nothing is left to inline, to unroll or to vectorise. What remains is
    constants and arguments that nobody needs, and then each function by itself: two thirds of the work of LLVM's
    pipeline for a module, and the same loops. At level 1 a GRU's inference is 0.9 as fast; so is a call of one step
    with a list of single passes, of which llvmlite offers none that takes out of a loop what does not change in it.
    """
    module = _parsed(text)
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = False
    passes = llvm.create_pass_builder(target, tuning)
    of_module, of_function = llvm.create_new_module_pass_manager(), passes.getFunctionPassManager()
    of_module.add_ipsccp_pass()
    of_module.add_dead_arg_elimination_pass()
    of_module.run(module, passes)
    for function in module.functions:
        if not function.is_declaration:
            of_function.run(function, passes)
    return module


def _parsed(text: str) -> llvm.ModuleRef:
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:  # LLVM's text changes with its releases
        version = ".".join(map(str, llvm.llvm_version_info))
        raise BackendError(
            "this release of llvmlite cannot read our kernels",
            given=f"llvmlite {llvmlite.__version__} (LLVM {version})",
            expected="llvmlite 0.45 to 0.50",
            remedy="pip install 'llvmlite>=0.45,<0.51', or recollect.set_backend(\"reference\")",
        ) from error
    return module


class Code:
    """An object file in memory, ready to run."""

    def __init__(self, object_file: bytes, machine: Machine) -> None:
        with COMPILING:
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target(machine))
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(object_file))
            self._engine.finalize_object()

    def address(self, name: str) -> int:
        return self._engine.get_function_address(name)


def _target(machine: Machine) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = machine.triple or llvm.get_default_triple()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=2, jit=True
    )
