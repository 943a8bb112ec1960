"""Whether a tensor is what it seems: numbers in memory."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from recollect.errors import InputError

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether its class is torch's own, as of most tensors by far."""
    return type(tensor) in _PLAIN


def is_foreign(tensor: torch.Tensor) -> bool:
    """Whether its class may keep something else than its numbers in memory."""
    return type(tensor) not in _PLAIN and _changes_operations(type(tensor))


def address(tensor: torch.Tensor, nbytes: int) -> int:
    """Where the numbers of a dense tensor begin; 0 where its storage does not hold so many bytes from there on."""
    offset, begin = tensor.storage_offset() * tensor.itemsize, tensor.data_ptr()
    # A storage without memory begins at 0, and so a part of it at its offset.
    return begin if begin > offset and tensor.untyped_storage().nbytes() >= offset + nbytes else 0


@lru_cache(maxsize=256)
def _changes_operations(kind: type) -> bool:
    function, dispatch = (_hook(kind, name) for name in ("__torch_function__", "__torch_dispatch__"))
    known = [_hook(plain, "__torch_function__") for plain in _PLAIN]
    return dispatch != _hook(torch.Tensor, "__torch_dispatch__") or function not in known


def _hook(kind: type, name: str) -> Any:
    hook = getattr(kind, name)
    return getattr(hook, "__func__", hook)


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Raise InputError if a tensor's storage does not hold all its numbers, as after ``storage.resize_(0)``.

    PyTorch's own operations read past the end of such a storage. Tensors that have none (torch.func's, a compiler's,
    those of other devices, sparse ones) pass.
    """
    if torch.compiler.is_compiling():
        return
    if not tensor.is_cpu or tensor.layout is not torch.strided or is_foreign(tensor) or not tensor.numel():
        return
    try:
        storage = tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # it stands for numbers that are elsewhere
        return
    if tensor._is_zerotensor():  # torch's own for zeros that are nowhere, which its operations know
        return
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if not address(tensor, (last + 1) * tensor.itemsize):
        raise InputError(
            f"{name} has no memory of its size",
            given=f"{tuple(tensor.shape)}, {tensor.dtype} on a storage of {storage.nbytes()} bytes",
            expected="a storage that holds all its numbers",
            remedy="resize the storage, and fill it, before the layer runs and until its backward pass has run",
        )
