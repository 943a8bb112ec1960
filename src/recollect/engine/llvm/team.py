"""The team of threads that a kernel runs on.

Where torch is loaded its own OpenMP runtime is used, so that one pool of threads serves both. It is
found among the libraries that the process has mapped; where there is none, kernels run on one thread.

A forked child inherits the pool's memory and none of its threads: whoever enters a region there waits for
them for ever. Hence two measures. The pool is dissolved before Python forks, so that torch's operations
work in the child too; both make a new one when they need it. And kernels run on one thread in any process
that was forked and has not executed a program since: the fork may not have been Python's, or this package
not have been there to see it, and forked workers share the cores among them anyway.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_FIRST_PROCESS = os.getpid()
_PAUSE_HARD = 2  # omp_pause_hard, omp.h: threads are joined and their memory is freed
_PF_FORKNOEXEC = 0x40  # "forked but didn't exec", include/linux/sched.h


@dataclass(frozen=True)
class Team:
    """Addresses of OpenMP's entry points, or of another team's; all 0 where there is one thread only.

    Attributes:
        parallel, thread_num, num_threads: ``GOMP_parallel`` and the two functions that a region asks who it is.
        why_single: why there is one thread only, or empty.
        yield_thread: gives the core to another thread; 0 where no region has a barrier.
    """

    parallel: int
    thread_num: int
    num_threads: int
    why_single: str
    yield_thread: int = 0

    @property
    def slots(self) -> dict[str, int]:
        """Its addresses as arguments of a kernel (`kernel.COMMON`)."""
        return {
            "parallel": self.parallel, "thread_num": self.thread_num,
            "num_threads": self.num_threads, "yield_thread": self.yield_thread,
        }  # fmt: skip

    def size(self, wanted: int) -> int:
        """How many threads to ask for."""
        return wanted if self.parallel else 1


def team() -> Team:
    """The team of this process."""
    return _find(os.getpid())


@lru_cache(maxsize=2)
def _find(process: int) -> Team:
    if process != _FIRST_PROCESS or _was_forked():
        return Team(0, 0, 0, "OpenMP does not survive a fork")
    if not sys.platform.startswith("linux"):
        return Team(0, 0, 0, f"no OpenMP runtime is looked for on {sys.platform} yet")
    for library in _libraries():
        try:
            functions = [getattr(library, name) for name in
                         ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "sched_yield")]  # fmt: skip
        except AttributeError:
            continue
        addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
        parallel, thread_num, num_threads, yield_thread = addresses
        return Team(parallel, thread_num, num_threads, "", yield_thread)
    return Team(0, 0, 0, "no OpenMP runtime is loaded")


def _libraries() -> list[ctypes.CDLL]:
    """The OpenMP runtimes that are loaded, torch's first."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "gomp" in line and len(line.split()) > 5}
    # torch ships its own copy; another library's pool would compete with it.
    return [ctypes.CDLL(path) for path in sorted(paths, key=lambda path: "torch" not in path)]


def _was_forked() -> bool:
    """Whether this process is a copy of another, made perhaps before this package was imported."""
    try:
        stat = Path("/proc/self/stat").read_text()
    except OSError:
        return False
    # The ninth field: the kernel's flags of the first thread. The second, in parentheses, may hold anything.
    return bool(int(stat.rpartition(")")[2].split()[6]) & _PF_FORKNOEXEC)


def _dissolve_pools() -> None:
    """Before a fork. A pool belongs to the thread that entered a region; only the forking one lives in the child."""
    for library in _libraries():
        pause = getattr(library, "omp_pause_resource_all", None)  # OpenMP 5.0
        if pause is not None:
            pause(_PAUSE_HARD)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_dissolve_pools)
