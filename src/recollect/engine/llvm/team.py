"""The team of threads that a kernel runs on.

Where torch is loaded its own OpenMP runtime is used, so that one pool of threads serves both. It is
found among the libraries that the process has mapped; where there is none, kernels run on one thread.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Team:
    """Addresses of the OpenMP entry points; all 0 where there is one thread only."""

    parallel: int
    thread_num: int
    num_threads: int
    why_single: str

    def size(self, wanted: int) -> int:
        """How many threads to ask for."""
        return wanted if self.parallel else 1


@lru_cache(maxsize=2)
def _find(process: int) -> Team:
    if process != _FIRST_PROCESS:
        return Team(0, 0, 0, "OpenMP does not survive a fork")
    if not sys.platform.startswith("linux"):
        return Team(0, 0, 0, f"no OpenMP runtime is looked for on {sys.platform} yet")
    maps = Path("/proc/self/maps").read_text()
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "gomp" in line and len(line.split()) > 5}
    # torch ships its own copy; another library's pool would compete with it.
    for path in sorted(paths, key=lambda path: "torch" not in path):
        library = ctypes.CDLL(path)
        try:
            functions = [getattr(library, name) for name in
                         ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]  # fmt: skip
        except AttributeError:
            continue
        addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
        return Team(addresses[0], addresses[1], addresses[2], "")
    return Team(0, 0, 0, "no OpenMP runtime is loaded")


_FIRST_PROCESS = os.getpid()


def team() -> Team:
    """The team of this process."""
    return _find(os.getpid())
