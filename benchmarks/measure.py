"""Paired timing, and the machine it was done on."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import llvmlite
import numpy
import torch
from llvmlite import ir

from recollect.engine.llvm.machine import Code, compile_module, host
from recollect.engine.llvm.values import I64, POINTER, VOID, Emitter

CHAINS = 12


@dataclass(frozen=True)
class Pair:
    """Seconds of two functions that were run in turn."""

    ours: list[float]
    peer: list[float]

    @property
    def ratio(self) -> float:
        """Median over the pairs of peer / ours: above 1 ours is faster."""
        return statistics.median(b / a for a, b in zip(self.ours, self.peer, strict=True))

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of those ratios."""
        low, _, high = statistics.quantiles((b / a for a, b in zip(self.ours, self.peer, strict=True)), n=4)
        return low, high


def paired(ours: Callable[[], object], peer: Callable[[], object], pairs: int) -> Pair:
    """Run A B A B ... after two rounds that do not count."""
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for turn in range(pairs + 2):
            for place, function in enumerate((ours, peer)):
                start = time.perf_counter()
                function()
                if turn >= 2:
                    times[place].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return Pair(*times)


def fma_peak(threads: int) -> float:
    """GFLOP/s of float32 multiply-adds that never leave the registers, on so many threads."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(VOID, [POINTER, I64]), "peak")
    lanes = host().lanes("float32")
    e = Emitter(function, "float32", lanes)
    place, count = e.arguments
    factor = e.load(place)
    sums = [e.variable(e.vector, e.load(place, chain * lanes)) for chain in range(CHAINS)]
    with e.loop(0, count):
        for chain in sums:
            chain.set(e.fma(factor, factor, chain.get()))
    for chain, total in enumerate(sums):
        e.store(total.get(), place, chain * lanes)
    e.builder.ret_void()
    code = Code(compile_module(str(module), host()), host())
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(code.address("peak"))

    rounds = 4_000_000
    memory = [numpy.zeros(CHAINS * lanes, dtype=numpy.float32) for _ in range(threads)]
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(lambda each: run(each.ctypes.data, rounds), memory))
            best = min(best, time.perf_counter() - start)
    return threads * 2 * CHAINS * lanes * rounds / best / 1e9


def machine() -> dict[str, object]:
    """What a figure depends on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    threads = torch.get_num_threads()
    return {
        "cpu": model,
        "llvm_cpu": host().cpu,
        "vector_bits": host().vector_bytes * 8,
        "threads": threads,
        "fma_peak_gflops": round(fma_peak(threads), 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "llvmlite": llvmlite.__version__,
        "dtype": "float32",
    }
