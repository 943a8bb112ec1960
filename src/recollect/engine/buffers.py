"""Memory that is used again from call to call.

A training step's internal buffers are large, and fresh memory costs a page fault every 4 KiB: more than
the arithmetic at many shapes. Buffers go back to a bounded pool when their last user lets go of them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

# Memory that is kept while nobody uses it; what would exceed it is freed.
LIMIT = 512 * 2**20
_LINE = 16  # numbers; parts of a buffer begin on a cache line of their own

_lock = threading.Lock()
_idle: dict[tuple[torch.dtype, int], list[torch.Tensor]] = {}
_idle_bytes = 0


class Buffer:
    """Uninitialised memory on loan, in parts; it returns to the pool when this object dies.

    Args:
        dtype: type of the numbers.
        counts: numbers in each part.

    Attributes:
        data: all parts, as a flat tensor.
        starts: where each part begins in ``data``.
        addresses: where each part begins in memory.
    """

    __slots__ = ("_key", "addresses", "data", "starts")

    def __init__(self, dtype: torch.dtype, counts: Sequence[int]) -> None:
        global _idle_bytes
        self.starts, total = [], 0
        for count in counts:
            self.starts.append(total)
            total += -(-count // _LINE) * _LINE
        # Sizes in eighths of a power of two: neighbours share buffers and at most an eighth is unused.
        step = max(1024, 1 << max(0, total.bit_length() - 3))
        self._key = (dtype, -(-total // step) * step)
        with _lock:
            waiting = _idle.get(self._key)
            found = waiting.pop() if waiting else None
            if found is not None:
                _idle_bytes -= found.nbytes
        if found is None:
            with torch.inference_mode(False):  # it may be reused in training
                found = torch.empty(self._key[1], dtype=dtype)
        self.data = found
        base, size = found.data_ptr(), found.itemsize
        self.addresses = [base + start * size for start in self.starts]

    def part(self, index: int, *shape: int) -> torch.Tensor:
        """One part as a tensor."""
        strides = [1] * len(shape)
        for place in range(len(shape) - 1, 0, -1):
            strides[place - 1] = strides[place] * shape[place]
        return self.data.as_strided(shape, strides, self.starts[index])

    def __del__(self) -> None:
        global _idle_bytes
        data = getattr(self, "data", None)
        if data is None:
            return
        with _lock:
            if _idle_bytes + data.nbytes <= LIMIT:
                _idle.setdefault(self._key, []).append(data)
                _idle_bytes += data.nbytes
