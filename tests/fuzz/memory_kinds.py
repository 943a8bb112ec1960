"""Kinds of tensors with the same numbers, and some without: how they lie in memory, and what a call may do then."""

from __future__ import annotations

from enum import IntEnum

import guarded
import torch


class Expected(IntEnum):
    """What a call may do with something; of two things the larger holds."""

    EQUAL = 0  # gives what the reference gives
    EITHER = 1  # that, or an error of ours
    SAFE = 2  # whatever it gives, or an error
    REFUSED = 3  # an error of ours


EQUAL, EITHER, SAFE, REFUSED = Expected

# Of floating-point numbers. The values may have to be such that a kind can hold them: see `values_of`.
NUMBERS = {
    "transposed": EQUAL,
    "expanded": EQUAL,
    "sliced": EQUAL,
    "strided": EQUAL,
    "negative": EQUAL,
    "zeros": EQUAL,
    "sparse": EITHER,
    "mkldnn": EITHER,
    "emptied": REFUSED,
    "halved": REFUSED,
    "emptied transposed": REFUSED,
    "halved transposed": REFUSED,
    "other dtype": REFUSED,
    "half": REFUSED,
    "meta": REFUSED,
}
FLAGS = {
    name: NUMBERS[name] for name in ("transposed", "expanded", "sliced", "strided", "emptied", "halved", "meta")
} | {"uint8": REFUSED, "bytes": SAFE}

_LESS = {"emptied": 0, "halved": 2}


def values_of(kind: str, values: torch.Tensor) -> torch.Tensor:
    """Values that a tensor of the kind can hold, near to the given ones."""
    if kind == "expanded":
        return values[:1].expand_as(values).clone()
    return torch.zeros_like(values) if kind == "zeros" else values


def shrink(tensor: torch.Tensor, kind: str) -> None:
    """Take the memory of a tensor away, or half of it; it is torch's own."""
    storage = tensor.untyped_storage()
    parts = _LESS[kind.split()[0]]
    storage.resize_(storage.nbytes() // parts if parts else 0)


def laid(values: torch.Tensor, dtype: torch.dtype, kind: str = "") -> torch.Tensor:
    """A tensor of values of the type and kind; in guarded memory, if it has any of its size."""
    given = values.to(dtype)
    first = kind.partition(" ")[0]
    if first in _LESS:
        turned = given.transpose(0, -1).contiguous().transpose(0, -1) if kind.endswith("transposed") else given
        made = torch.empty_strided(given.shape, turned.stride(), dtype=dtype)
        shrink(made, first)
        return made
    match kind:
        case "transposed":
            return guarded.tensor(given.transpose(0, -1).contiguous()).transpose(0, -1)
        case "expanded":
            return guarded.tensor(given[:1]).expand_as(given)
        case "sliced":
            return guarded.tensor(torch.cat([given[-1:], given]))[1:]
        case "strided":
            return guarded.tensor(torch.stack([given, given.flip(0)], -1))[..., 0]
        case "negative":
            return torch._neg_view(guarded.tensor(-given))
        case "zeros":
            return torch._efficientzerotensor(given.shape, dtype=dtype)
        case "sparse":
            return given.to_sparse()
        case "mkldnn":
            return given.float().to_mkldnn()
        case "other dtype":
            return guarded.tensor(given.to(torch.float64 if dtype is torch.float32 else torch.float32))
        case "half":
            return guarded.tensor(given.half())
        case "meta":
            return given.to("meta")
        case "uint8":
            return guarded.tensor(given.to(torch.uint8))
        case "bytes":
            return guarded.tensor(given.to(torch.uint8) * 6).view(torch.bool)
    return guarded.tensor(given)
