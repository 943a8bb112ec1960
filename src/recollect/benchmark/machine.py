"""The machine that is measured on: its name, versions, and how many multiply-adds it can do at most."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import llvmlite
import numpy
import torch
from llvmlite import ir

import recollect
from recollect.engine.llvm.machine import Code, compile_module, host
from recollect.engine.llvm.values import I64, POINTER, VOID, Emitter

PEERS = ("jax", "jaxlib", "onnxruntime")


class Peak:
    """The most float32 multiply-adds a second that these threads were ever seen to do.

    They never leave the registers. A shared machine is not always as fast as it can be, so `look` is called again
    and again between measurements and the best counts.

    Attributes:
        gflops: GFLOP/s; a multiply-add counts two.
    """

    def __init__(self, threads: int) -> None:
        self.gflops = 0.0
        # Independent sums hide the latency of an FMA, as long as they do not spill.
        lanes, self._chains = host().lanes("float32"), host().accumulators
        self._lanes = lanes
        code = Code(compile_module(_multiply_adds(lanes, self._chains), host()), host())
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(code.address("peak"))
        self._memory = [numpy.zeros(self._chains * lanes, dtype=numpy.float32) for _ in range(threads)]
        self._code = code  # owns what `_run` points to
        for _ in range(5):
            self.look(4_000_000)

    def look(self, rounds: int = 1_000_000) -> None:
        """Measure once more; some 10 ms."""
        with ThreadPoolExecutor(len(self._memory)) as pool:
            list(pool.map(lambda each: self._run(each.ctypes.data, 1), self._memory))  # starts the threads
            start = time.perf_counter()
            list(pool.map(lambda each: self._run(each.ctypes.data, rounds), self._memory))
            seconds = time.perf_counter() - start
        flops = 2 * len(self._memory) * self._chains * self._lanes * rounds
        self.gflops = max(self.gflops, flops / seconds / 1e9)


def _multiply_adds(lanes: int, chains: int) -> str:
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(VOID, [POINTER, I64]), "peak")
    e = Emitter(function, "float32", lanes)
    place, count = e.arguments
    factor = e.load(place)
    sums = [e.variable(e.vector, e.load(place, chain * lanes)) for chain in range(chains)]
    with e.loop(0, count):
        for chain in sums:
            chain.set(e.fma(factor, factor, chain.get()))
    for chain, total in enumerate(sums):
        e.store(total.get(), place, chain * lanes)
    e.builder.ret_void()
    return str(module)


def machine() -> dict[str, object]:
    """What a figure depends on, besides the peak."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "llvm_cpu": host().cpu,
        "vector_bits": host().vector_bytes * 8,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "recollect": recollect.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "llvmlite": llvmlite.__version__,
        **_versions(*PEERS),
    }


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
