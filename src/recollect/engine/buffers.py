"""Memory that is used again from call to call.

A training step's internal buffers are large, and fresh memory costs a page fault every 4 KiB: more than
the arithmetic at many shapes. Buffers go back to a bounded pool when their last user lets go of them.
"""

from __future__ import annotations

import os
import threading

import torch

from recollect.engine.llvm.problem import Parts
from recollect.errors import InputError

# Memory that is kept while nobody uses it; what would exceed it is freed.
LIMIT = 512 * 2**20

# Reentrant: the garbage collector may run `__del__` of one buffer while another is being made.
_lock = threading.RLock()
_idle: dict[tuple[torch.dtype, int], list[torch.Tensor]] = {}
_idle_bytes = 0


def _start_afresh() -> None:
    """In a forked child: a thread that is not there may hold the lock, and to write to a page shared with the
    parent costs more than to get a new one."""
    global _lock, _idle_bytes
    _lock = threading.RLock()
    _idle.clear()
    _idle_bytes = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)


class Buffer:
    """Uninitialised memory on loan; it returns to the pool when this object dies.

    Args:
        dtype: type of the numbers.
        parts: how it is divided.
        data: memory of the caller's to divide, which stays the caller's.

    Raises:
        InputError: ``data`` is not that much memory of that type.

    Attributes:
        data: all of it, as a flat tensor.
        addresses: where each part begins.
    """

    __slots__ = ("_key", "addresses", "data")

    def __init__(self, dtype: torch.dtype, parts: Parts, data: torch.Tensor | None = None) -> None:
        global _idle_bytes
        self._key = None
        if data is not None:
            if data.dtype != dtype or data.dim() != 1 or not data.is_contiguous() or len(data) < parts.total:
                raise InputError(
                    "the memory that was kept does not fit the layer",
                    given=f"{data.dtype} {tuple(data.shape)}",
                    expected=f"{dtype} [{parts.total}]",
                )
            self._divide(data, parts)
            return
        # Sizes in eighths of a power of two: neighbours share buffers and at most an eighth is unused.
        step = max(1024, 1 << max(0, parts.total.bit_length() - 3))
        self._key = (dtype, -(-parts.total // step) * step)
        with _lock:
            waiting = _idle.get(self._key)
            found = waiting.pop() if waiting else None
            if found is not None:
                _idle_bytes -= found.nbytes
        if found is None:
            with torch.inference_mode(False):  # it may be reused in training
                found = torch.empty(self._key[1], dtype=dtype)
        self._divide(found, parts)

    def _divide(self, data: torch.Tensor, parts: Parts) -> None:
        self.data = data
        base, size = data.data_ptr(), data.dtype.itemsize
        self.addresses = [base + start * size for start in parts.starts]

    def __del__(self) -> None:
        global _idle_bytes
        data = getattr(self, "data", None)
        if data is None or self._key is None:
            return
        # Never waits: it may run in the middle of anything, under any lock.
        if _lock.acquire(blocking=False):
            try:
                if _idle_bytes + data.nbytes <= LIMIT:
                    _idle.setdefault(self._key, []).append(data)
                    _idle_bytes += data.nbytes
            finally:
                _lock.release()
