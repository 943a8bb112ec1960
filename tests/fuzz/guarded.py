"""Memory that ends where a page begins that nobody may touch: a kernel that goes too far ends the process.

POSIX only. What is fresh is full of bytes of 255, which as floating-point numbers are NaN.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._C import _functorch

from recollect.engine import buffers
from recollect.engine.llvm.problem import Parts
from recollect.stream import links

_PAGE = mmap.PAGESIZE
_NO_ACCESS = 0
_LINE = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Side:
    """Which end of memory touches a guard page: ``"after"`` the last byte, or ``"before"`` the first."""

    now = "after"


def _region(nbytes: int) -> tuple[mmap.mmap, int]:
    """Pages for so many bytes between two guard pages, and how many bytes these pages have."""
    inner = max(1, -(-nbytes // _PAGE)) * _PAGE
    region = mmap.mmap(-1, inner + 2 * _PAGE)
    pages = np.frombuffer(region, np.uint8)
    pages[_PAGE:-_PAGE] = 255
    begin = pages.ctypes.data
    for page in (begin, begin + _PAGE + inner):
        if _libc.mprotect(page, _PAGE, _NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    return region, inner


def array(shape: Sequence[int], dtype: Any, strides: Sequence[int] | None = None) -> np.ndarray:
    """An array whose last byte, or first one, is beside a guard page.

    Args:
        strides: in bytes, none negative; row-major if None.
    """
    dtype = np.dtype(dtype)
    if strides is None:
        nbytes = int(np.prod(shape)) * dtype.itemsize
    else:
        steps = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        nbytes = steps + dtype.itemsize if 0 not in shape else 0
    region, inner = _region(nbytes)
    start = _PAGE + (inner - nbytes if Side.now == "after" else 0)
    return np.ndarray(tuple(shape), dtype, region, start, None if strides is None else tuple(strides))


def tensor(values: torch.Tensor) -> torch.Tensor:
    """A copy of dense values, in the order of memory that they have, in a storage of exactly its numbers."""
    given = values.detach()
    kind = np.dtype(str(given.dtype).removeprefix("torch."))
    made = torch.from_numpy(array(given.shape, kind, [stride * given.itemsize for stride in given.stride()]))
    part = tuple(slice(None) if stride else slice(1) for stride in given.stride())  # what is not expanded
    made[part].copy_(given[part])
    return made


def of_array(values: np.ndarray) -> np.ndarray:
    """A row-major copy."""
    made = array(values.shape, values.dtype)
    made[...] = values
    return made


class _Memory(buffers.Memory):
    """Memory of the engine whose last number, or its first one, is beside a guard page."""

    __slots__ = ()

    def __init__(self, key: tuple[torch.dtype, int]) -> None:
        dtype, count = key
        self.array, self._loan = array((count,), str(dtype).removeprefix("torch.")), None
        self.address, self.nbytes = self.array.ctypes.data, self.array.nbytes
        self.array.fill(np.nan)
        assert self.address % _LINE == 0, "parts of the engine's memory begin on cache lines"


def _lend(self: buffers.Buffer, dtype: torch.dtype, parts: Parts, small: int | None = None) -> None:
    """A buffer of exactly its size, which nobody uses again, where the pool's may be larger."""
    self._memory = _Memory((dtype, parts.total))
    self._loan, self._total, self._fresh = self._memory.lend(), parts.total, None
    self.nbytes = self._memory.nbytes
    self.addresses = parts.addresses(self._memory.address, dtype.itemsize)


_KINDS = (torch.float32, torch.float64, torch.int64, torch.bool)


def _can_be_guarded(made: Any) -> bool:
    return (
        type(made) is torch.Tensor
        and made.is_cpu
        and made.layout is torch.strided
        and made.dtype in _KINDS
        and not made.requires_grad
        and not made.is_neg()
        and not made._is_zerotensor()
        and _functorch.peek_interpreter_stack() is None
        and not _functorch.is_legacy_batchedtensor(made)
    )


def _guarding(make: Callable[..., Any], *, copies: bool) -> Callable[..., Any]:
    def guarded(*args: Any, **options: Any) -> Any:
        made = make(*args, **options)
        if not _can_be_guarded(made) or any(made is given for given in args):
            return made
        if copies:
            return tensor(made)
        kind = str(made.dtype).removeprefix("torch.")
        return torch.from_numpy(array(made.shape, kind, [stride * made.itemsize for stride in made.stride()]))

    return guarded


def _aligned(*shape: int, dtype: np.dtype) -> np.ndarray:
    made = array(shape, dtype)
    made[...] = 0
    return made


@contextmanager
def allocations() -> Iterator[None]:
    """All memory that layers and steppers make for themselves through torch and `links` is guarded."""
    functions = [
        (torch, "empty", False), (torch, "empty_like", False), (torch, "zeros_like", True), (torch, "zeros", True),
        (torch.Tensor, "new_empty", False), (torch.Tensor, "new_zeros", True), (torch.Tensor, "contiguous", True),
        (torch.Tensor, "clone", True), (torch.Tensor, "long", True),
    ]  # fmt: skip
    with ExitStack() as patches:
        for owner, name, copies in functions:
            patches.enter_context(mock.patch.object(owner, name, _guarding(getattr(owner, name), copies=copies)))
        patches.enter_context(mock.patch.object(buffers.Buffer, "__init__", _lend))
        patches.enter_context(mock.patch.object(links, "_aligned", _aligned))
        yield
