"""Memory that is used again from call to call.

A training step's internal buffers are large, and fresh memory costs a page fault every 4 KiB: more than
the arithmetic at many shapes. So memory that nobody uses any more is lent again.

Nothing is handed back: a loan is over when nothing refers to it any more, which a weak reference tells whoever looks
for memory next. So no code of ours runs while objects die, in the middle of whatever else, where an exception
(Ctrl-C) would be lost.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from recollect.engine.llvm.problem import Parts, Pass
from recollect.errors import InputError

LIMIT = 512 * 2**20  # bytes that are kept while nobody uses them
_LEAST = 96 * 2**10  # bytes below which fresh memory, which malloc then has at hand, costs less than a loan
_MOST_SIZES, _MOST_OF_A_SIZE, _LOOKS = 256, 64, 4
# Scratch memory of less is kept by its kernel, for so many calls at once; how much that is may come to for all kernels.
_SCRATCH, _MOST_SCRATCH, _ALL_SCRATCH = 256 * 2**10, 4, 64 * 2**20

_NUMBERS = {dtype: torch.empty(0, dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}

_Key = tuple[torch.dtype, int]


class Loan:
    """A loan of memory, which lasts as long as anything refers to this object."""

    __slots__ = ("__weakref__",)


class _Lent(np.ndarray):
    """The memory of a ``loan`` as an array, to which a tensor that is made of it refers."""

    loan: Loan


class Memory:
    """Uninitialised memory for so many numbers of a type; ``address`` is where it begins."""

    __slots__ = ("__weakref__", "_loan", "address", "array", "nbytes")

    def __init__(self, key: _Key) -> None:
        dtype, count = key
        tensor = torch.empty(count, dtype=dtype, device="cpu")  # aligned, which NumPy's memory is not
        self.array, self.address, self.nbytes = tensor.numpy(), tensor.data_ptr(), tensor.nbytes
        self._loan: weakref.ref[Loan] | None = None

    @property
    def in_use(self) -> bool:
        return self._loan is not None and self._loan() is not None

    def lend(self) -> Loan:
        """Begin a loan of it, which is not in use."""
        loan = Loan()
        self._loan = weakref.ref(loan)
        return loan


class _Size(deque[Memory]):
    """The memories of one size, the one lent last at the end; ``used`` grows from loan to loan."""

    used = 0


class Pool:
    """Memory to be lent, by type and length.

    Threads need no lock: whoever has taken a memory out of its deque, which one thread does at a time, is the only one
    to lend it. A memory that an exception loses on this way is freed when its loan is over.

    Args:
        limit: bytes that it keeps, lent or not. For more, what nobody uses is freed, the sizes used least recently
            first; what does not fit then is lent for once and freed when that is over.
        least: bytes of the smallest memory that it lends; a `Buffer` of less is fresh.
    """

    def __init__(self, limit: int = LIMIT, least: int = _LEAST) -> None:
        self.limit, self.least = limit, least
        self._sizes: dict[_Key, _Size] = {}
        self._clock = itertools.count()

    def lend(self, key: _Key) -> tuple[Memory, Loan]:
        """Memory of that type and length, and its loan."""
        size = self._sizes.get(key)
        if size is None:
            self._bound_sizes()
            size = self._sizes.setdefault(key, _Size())
        size.used = next(self._clock)
        for look in range(min(len(size), _LOOKS)):  # more would take long where all are in use
            try:  # what was lent last may still be in the caches
                memory = size.popleft() if look else size.pop()
            except IndexError:  # another thread was faster
                break
            loan = None if memory.in_use else memory.lend()
            size.append(memory)
            if loan is not None:
                return memory, loan
        memory = Memory(key)
        loan = memory.lend()
        if len(size) < _MOST_OF_A_SIZE and self._make_room(memory.nbytes):
            size.append(memory)
        return memory, loan

    def _bound_sizes(self) -> None:
        """Forget the sizes used least recently, and their memory, where there are many."""
        if len(self._sizes) >= _MOST_SIZES:
            for key, _ in sorted(self._sizes.items(), key=lambda pair: pair[1].used)[: _MOST_SIZES // 2]:
                self._sizes.pop(key, None)

    def _make_room(self, nbytes: int) -> bool:
        """Free what nobody uses until so many bytes are within the limit; whether they are."""
        if nbytes > self.limit:
            return False
        excess = sum(memory.nbytes for _, memory in self._all()) + nbytes - self.limit
        if excess > 0:
            for size, memory in sorted(self._all(), key=lambda pair: pair[0].used):
                if not memory.in_use:
                    excess -= self._drop(size, memory)
                if excess <= 0:
                    break
        return excess <= 0

    def _all(self) -> Iterator[tuple[_Size, Memory]]:
        for size in list(self._sizes.values()):
            for memory in list(size):
                yield size, memory

    @staticmethod
    def _drop(size: _Size, memory: Memory) -> int:
        """Keep it no longer; the bytes that this makes free."""
        try:
            size.remove(memory)
        except ValueError:  # another thread has it
            return 0
        return memory.nbytes

    @property
    def idle_bytes(self) -> int:
        """Bytes that it keeps and nobody uses."""
        return sum(memory.nbytes for _, memory in self._all() if not memory.in_use)

    def release(self) -> int:
        """Free all that nobody uses; returns how many bytes that were."""
        return sum(self._drop(size, memory) for size, memory in self._all() if not memory.in_use)


_pool = Pool()


def release_buffers() -> int:
    """Free the memory that layers keep for their next calls, and return how many bytes that were.

    Up to 512 MiB are kept, since fresh memory is slow; a call after this one begins with fresh memory again. What a
    forward pass has left for a backward pass that is still to come is in use and stays.

    Example:
        >>> recollect.release_buffers()
        4194304
    """
    return _pool.release() + _release_scratch()


# A plain set, of which Python makes a list in one piece, whatever other threads add.
_with_scratch: set[weakref.ref[Pass]] = set()


def _kernels_with_scratch() -> list[Pass]:
    return [kernel for kernel in (known() for known in list(_with_scratch)) if kernel is not None]


def _release_scratch() -> int:
    """Free what kernels keep for themselves; returns how many bytes that were."""
    count = 0
    for kernel in _kernels_with_scratch():
        idle, kernel.scratch = kernel.scratch or [], None
        count += sum(scratch.nbytes for scratch in idle)
    _with_scratch.clear()
    return count


def _start_afresh() -> None:
    """In a forked child: to write to a page shared with the parent costs more than to get a new one."""
    global _pool
    _pool = Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)


class Buffer:
    """Uninitialised memory: fresh where it is small, else on loan until this object and its tensor are gone.

    Args:
        dtype: type of the numbers.
        parts: how it is divided.
        small: bytes below which it is fresh; the pool's least if None.

    Attributes:
        addresses: where each part begins.
        nbytes: of all parts.
    """

    __slots__ = ("_fresh", "_loan", "_memory", "_total", "addresses", "nbytes")

    def __init__(self, dtype: torch.dtype, parts: Parts, small: int | None = None) -> None:
        itemsize, self._total = dtype.itemsize, parts.total
        self.nbytes = itemsize * parts.total
        self._fresh: torch.Tensor | None = None
        if self.nbytes < (_pool.least if small is None else small):
            self._fresh = _NUMBERS[dtype].new_empty(parts.total)  # faster than torch.empty with a dtype and a device
            self.addresses = parts.addresses(self._fresh.data_ptr(), itemsize)
        else:
            self._memory, self._loan = _pool.lend((dtype, parts.room))
            self.addresses = parts.addresses(self._memory.address, itemsize)

    @classmethod
    def scratch(cls, kernel: Pass, dtype: torch.dtype) -> Buffer:
        """Memory that a kernel has for itself while it runs, and which is to `give_back` then."""
        idle = kernel.scratch
        try:
            return idle.pop() if idle else cls(dtype, kernel.parts, _SCRATCH)
        except IndexError:  # another thread was faster
            return cls(dtype, kernel.parts, _SCRATCH)

    def give_back(self, kernel: Pass) -> None:
        """Leave it to the kernel's next call if it is small: there a loan costs as much as the kernel's run.

        Where an exception comes first, it is freed.
        """
        if self._fresh is None:
            return
        idle = kernel.scratch  # which another thread may release meanwhile
        if idle is None:
            held = sum(other.nbytes for known in _kernels_with_scratch() for other in known.scratch or ())
            if held + self.nbytes > _ALL_SCRATCH:
                _release_scratch()
            idle = kernel.scratch = []
            _with_scratch.add(weakref.ref(kernel))
        if len(idle) < _MOST_SCRATCH:
            idle.append(self)

    def tensor(self) -> torch.Tensor:
        """All of it, flat. A loan lasts as long as this tensor or a view of it, wherever autograd keeps it."""
        if self._fresh is not None:
            return self._fresh
        array = self._memory.array[: self._total].view(_Lent)
        array.loan = self._loan
        return torch.from_numpy(array)


def part_addresses(memory: torch.Tensor, dtype: torch.dtype, parts: Parts) -> list[int]:
    """Where each part begins of memory that somebody else has kept.

    Raises:
        InputError: it is not that much memory of that type.
    """
    fits = memory.dtype is dtype and memory.dim() == 1 and memory.is_cpu and memory.is_contiguous()
    if (
        not fits
        or memory._is_zerotensor()
        or memory.is_neg()
        or len(memory) < parts.total
        or memory.untyped_storage().nbytes() < memory.nbytes
    ):
        raise InputError(
            "the memory that was kept for the backward pass does not fit the layer",
            given=f"{memory.dtype} {tuple(memory.shape)} on {memory.device}",
            expected=f"{dtype} [{parts.total}] on cpu",
        )
    return parts.addresses(memory.data_ptr(), dtype.itemsize)
