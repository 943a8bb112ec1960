"""Memory that is used again from call to call.

A training step's internal buffers are large, and fresh memory costs a page fault every 4 KiB: more than
the arithmetic at many shapes. Buffers go back to a bounded pool when their last user lets go of them.
"""

from __future__ import annotations

import threading

import torch

# Memory that is kept while nobody uses it; what would exceed it is freed.
LIMIT = 512 * 2**20

_lock = threading.Lock()
_idle: dict[tuple[torch.dtype, int], list[torch.Tensor]] = {}
_idle_bytes = 0


class Buffer:
    """A flat tensor on loan; it returns to the pool when this object dies."""

    __slots__ = ("_key", "_next", "data")

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        global _idle_bytes
        # Sizes in eighths of a power of two: neighbours share buffers and at most an eighth is unused.
        step = max(1024, 1 << max(0, count.bit_length() - 3))
        self._key = (dtype, -(-count // step) * step)
        self._next = 0
        with _lock:
            waiting = _idle.get(self._key)
            found = waiting.pop() if waiting else None
            if found is not None:
                _idle_bytes -= found.nbytes
        if found is None:
            with torch.inference_mode(False):  # it may be reused in training
                found = torch.empty(self._key[1], dtype=dtype)
        self.data = found

    def take(self, *shape: int) -> torch.Tensor:
        """The next part of the buffer, as a tensor of this shape; starts on a cache line."""
        count = 1
        for size in shape:
            count *= size
        part = self.data.narrow(0, self._next, count).view(shape)
        self._next += -(-count // 16) * 16
        return part

    def __del__(self) -> None:
        global _idle_bytes
        with _lock:
            if _idle_bytes + self.data.nbytes <= LIMIT:
                _idle.setdefault(self._key, []).append(self.data)
                _idle_bytes += self.data.nbytes


def room(*counts: int) -> int:
    """Numbers that a buffer needs for parts of these sizes."""
    return sum(-(-count // 16) * 16 for count in counts)
