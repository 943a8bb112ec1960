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

LIMIT = 512 * 2**20  # bytes that are kept while nobody uses them

_Key = tuple[torch.dtype, int]


class Memory:
    """Uninitialised memory for so many numbers of a type; ``address`` is where it begins."""

    __slots__ = ("address", "data", "itemsize", "nbytes")

    def __init__(self, key: _Key) -> None:
        dtype, count = key
        with torch.inference_mode(False):  # it may be reused in training
            self.data = torch.empty(count, dtype=dtype)
        self.address, self.itemsize, self.nbytes = self.data.data_ptr(), dtype.itemsize, self.data.nbytes


class Pool:
    """Memory that nobody uses, by type and length.

    Who does not get the lock at once does without the pool: the garbage collector may end a buffer in the middle of
    anything, under any lock, this one too.

    Args:
        limit: bytes that it keeps; for what comes back beyond, the sizes that were used least recently are freed.

    Attributes:
        idle_bytes: bytes that it keeps now.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.idle_bytes = limit, 0
        self._idle: dict[_Key, list[Memory]] = {}  # the size used least recently first; so within a size
        self._lock = threading.Lock()

    def take(self, key: _Key) -> Memory | None:
        """Memory of that type and length, or None."""
        if not self._lock.acquire(False):
            return None
        try:
            waiting = self._idle.get(key)
            if not waiting:
                return None
            found = waiting.pop()
            if not waiting:
                del self._idle[key]
            self.idle_bytes -= found.nbytes
            return found
        finally:
            self._lock.release()

    def give(self, key: _Key, memory: Memory) -> None:
        """Keep memory that nobody uses any more, if it is within the limit at all."""
        if memory.nbytes > self.limit or not self._lock.acquire(False):
            return
        freed = []  # once the lock is open again: the system takes its time
        try:
            waiting = self._idle[key] = self._idle.pop(key, [])  # now the size used last
            waiting.append(memory)
            self.idle_bytes += memory.nbytes
            while self.idle_bytes > self.limit:
                freed.append(self._oldest())
        finally:
            self._lock.release()

    def _oldest(self) -> Memory:
        key, waiting = next(iter(self._idle.items()))
        found = waiting.pop(0)
        if not waiting:
            del self._idle[key]
        self.idle_bytes -= found.nbytes
        return found

    def release(self) -> int:
        """Free all of it; returns how many bytes that were."""
        with self._lock:
            freed, self._idle = self._idle, {}
            count, self.idle_bytes = self.idle_bytes, 0
        del freed
        return count


_pool = Pool()


def release_buffers() -> int:
    """Free the memory that layers keep for their next calls, and return how many bytes that were.

    Up to 512 MiB are kept, since fresh memory is slow; a call after this one begins with fresh memory again. What a
    forward pass has left for a backward pass that is still to come is in use and stays.

    Example:
        >>> recollect.release_buffers()
        4194304
    """
    return _pool.release()


def _start_afresh() -> None:
    """In a forked child: a thread that is not there may hold the lock, and to write to a page shared with the
    parent costs more than to get a new one."""
    global _pool
    _pool = Pool()


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

    __slots__ = ("_key", "_memory", "addresses", "data")

    def __init__(self, dtype: torch.dtype, parts: Parts, data: torch.Tensor | None = None) -> None:
        self._memory = None
        if data is None:
            self._key = (dtype, parts.room)
            self._memory = memory = _pool.take(self._key) or Memory(self._key)
            self.data, base, size = memory.data, memory.address, memory.itemsize
        else:
            if data.dtype != dtype or data.dim() != 1 or not data.is_contiguous() or len(data) < parts.total:
                raise InputError(
                    "the memory that was kept does not fit the layer",
                    given=f"{data.dtype} {tuple(data.shape)}",
                    expected=f"{dtype} [{parts.total}]",
                )
            self.data, base, size = data, data.data_ptr(), dtype.itemsize
        self.addresses = [base + start * size for start in parts.starts]

    def __del__(self) -> None:
        if self._memory is not None:
            _pool.give(self._key, self._memory)
