"""What a stepper is given: inputs, streams to be reset and snapshots, of all kinds."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import guarded
import numpy as np
import torch
from memory_kinds import EQUAL, REFUSED, Expected

# Of the input of a step.
INPUTS = dict.fromkeys(
    ["", "", "list", "tuple", "other dtype", "float16", "integers", "int8", "uint64", "bool", "long double",
     "big endian", "strided", "backward", "Fortran", "sliced", "unaligned", "read-only", "matrix", "tensor",
     "memoryview", "expanded", "nan", "infinite"],
    EQUAL,
) | dict.fromkeys(
    ["features", "fewer streams", "more streams", "three axes", "scalar", "empty", "no features", "objects", "text",
     "bytes", "complex", "none", "ragged", "dictionary", "dates", "records", "generator", "a tensor with a gradient",
     "a tensor of meta", "type"],
    REFUSED,
)  # fmt: skip
RESETS = dict.fromkeys(["all", "one", "list", "mask", "array", "none of them", "int8", "twice"], EQUAL) | dict.fromkeys(
    ["beyond", "below 0", "huge", "least", "beyond 64 bits", "uint64", "float", "text", "short mask", "matrix",
     "ragged", "objects", "dictionary"],
    REFUSED,
)  # fmt: skip
SNAPSHOTS = dict.fromkeys(["", "bytearray", "memoryview", "strided", "again"], EQUAL) | dict.fromkeys(
    ["flipped", "truncated", "longer", "empty", "text", "none", "zeros", "other model", "array", "more streams", "huge",
     "overflowing", "negative", "axes", "version", "number size"],
    REFUSED,
)  # fmt: skip
DOES: dict[str, dict[str, Expected]] = {
    "step": INPUTS, "reset": RESETS, "snapshot": {"": EQUAL}, "restore": SNAPSHOTS,
}  # fmt: skip


def odd_input(name: str, values: np.ndarray, kind: str) -> tuple[Any, np.ndarray]:
    """An input of a kind for a stepper with numbers of that name, and the numbers that it has."""
    dtype = np.dtype(name)
    plain = guarded.of_array(values.astype(dtype))
    whole = np.clip(np.round(values), 0, 1)
    last = values.shape[-1]
    match kind:
        case "list":
            return plain.tolist(), plain
        case "tuple":
            return tuple(plain.tolist()), plain
        case "other dtype":
            other = np.dtype("float32" if name == "float64" else "float64")
            made = guarded.of_array(values.astype(other))
            return made, made.astype(dtype)
        case "float16" | "long double" | "big endian":
            name = {"float16": "f2", "long double": "g", "big endian": dtype.newbyteorder(">").str}[kind]
            made = guarded.of_array(values.astype(name))
            return made, made.astype(dtype)
        case "integers" | "int8" | "uint64" | "bool":
            made = guarded.of_array(whole.astype({"integers": "int64"}.get(kind, kind)))
            return made, whole
        case "strided":
            made = guarded.array((*plain.shape, 2), dtype)
            made[..., 1] = plain
            return made[..., 1], plain
        case "backward":
            return guarded.of_array(plain[..., ::-1])[..., ::-1], plain
        case "Fortran":
            return guarded.of_array(np.ascontiguousarray(plain.T)).T, plain
        case "sliced":
            made = guarded.array((2, *plain.shape), dtype)
            made[1] = plain
            return made[1], plain
        case "unaligned":
            made = guarded.array((plain.nbytes + 1,), np.uint8)
            made[:-1] = np.frombuffer(plain.tobytes(), np.uint8)
            return made[:-1].view(dtype).reshape(plain.shape), plain
        case "read-only":
            plain.flags.writeable = False
        case "matrix":
            return plain.view(_Array), plain
        case "tensor":
            return torch.from_numpy(plain), plain
        case "memoryview":
            return memoryview(plain), plain
        case "expanded":
            made = np.broadcast_to(plain[..., :1], plain.shape)
            return made, made
        case "nan":
            plain[..., -1] = np.nan
        case "infinite":
            plain[..., -1] = np.inf
        case "features":
            return plain[..., :-1] if last > 1 else np.concatenate([plain, plain], -1), plain
        case "fewer streams":
            return plain[:-1] if plain.ndim == 2 and len(plain) > 1 else plain[..., None, :][None], plain
        case "more streams":
            return np.concatenate([plain, plain]) if plain.ndim == 2 else np.stack([plain, plain])[None], plain
        case "three axes":
            return np.broadcast_to(plain, (1, 1, *plain.shape)[-3:]) if plain.ndim > 1 else plain[None, None], plain
        case "scalar":
            return np.array(1.0, dtype), plain
        case "empty":
            return plain.reshape(-1, last)[:0], plain
        case "no features":
            return plain[..., :0], plain
        case "objects":
            return np.array([object()] * last), plain
        case "text":
            return "0.5", plain
        case "bytes":
            return b"0.5", plain
        case "complex":
            return plain.astype(np.complex64), plain
        case "none":
            return None, plain
        case "ragged":
            return [[1.0], [1.0, 2.0]], plain
        case "dictionary":
            return {"x": plain}, plain
        case "dates":
            return np.zeros(plain.shape, "M8[s]"), plain
        case "records":
            return np.zeros(plain.shape, [("x", dtype)]), plain
        case "generator":
            return (number for number in plain), plain
        case "a tensor with a gradient":
            return torch.from_numpy(plain).requires_grad_(), plain
        case "a tensor of meta":
            return torch.empty(plain.shape, device="meta"), plain
        case "type":
            return float, plain
    return plain, plain


class _Array(np.ndarray):
    """A subclass that changes nothing."""


def odd_reset(streams: int | None, kind: str) -> tuple[Any, list[int] | None]:
    """The argument of a reset, and which rows it means."""
    count = streams or 0
    rows = [0] if count else []
    match kind:
        case "all":
            return None, None
        case "one":
            return (0, rows) if count else ([], [])
        case "list":
            return list(range(0, count, 2)), list(range(0, count, 2))
        case "mask":
            return (np.arange(count) % 2 == 0, list(range(0, count, 2))) if count else ([], [])
        case "array":
            return guarded.of_array(np.arange(count)[::-1]), list(range(count))
        case "none of them":
            return [], []
        case "int8":
            return np.array(rows, np.int8), rows
        case "twice":
            return rows * 2, rows
    wrong: dict[str, Any] = {
        "beyond": [count], "below 0": -1, "huge": 2**62, "least": np.array([-(2**63)]), "beyond 64 bits": 2**70,
        "uint64": np.array([2**64 - 1], np.uint64), "float": 0.0, "text": "0",
        "short mask": np.ones(count + 1, bool), "matrix": np.zeros((1, 1), int), "ragged": [[0], [0, 0]],
        "objects": [object()], "dictionary": {0: 0},
    }  # fmt: skip
    return wrong[kind], None


_HEAD = struct.Struct("<8sII32sqq")


def odd_snapshot(kept: bytes, kind: str, seed: int) -> Any:
    """What is given to be restored."""
    body = kept[:-32]
    magic, version, size, fingerprint, count, axes = _HEAD.unpack_from(body)

    def forged(**changes: int) -> bytes:
        head = {"version": version, "size": size, "count": count, "axes": axes} | changes
        made = _HEAD.pack(magic, head["version"], head["size"], fingerprint, head["count"], head["axes"])
        made += body[_HEAD.size :]
        return made + hashlib.sha256(made).digest()

    place = seed % len(kept)
    match kind:
        case "bytearray":
            return bytearray(kept)
        case "memoryview":
            return memoryview(guarded.of_array(np.frombuffer(kept, np.uint8)))
        case "strided":
            return memoryview(np.frombuffer(kept, np.uint8).repeat(2))[::2]
        case "flipped":
            return kept[:place] + bytes([kept[place] ^ 1]) + kept[place + 1 :]
        case "truncated":
            return kept[:place]
        case "longer":
            return kept + b"\0"
        case "empty":
            return b""
        case "text":
            return "snapshot"
        case "none":
            return None
        case "zeros":
            return bytes(len(kept))
        case "array":
            return np.frombuffer(kept, np.uint8)
        case "more streams":
            return forged(count=count + 1, axes=2)
        case "huge":
            return forged(count=2**50, axes=2)
        case "overflowing":
            return forged(count=2**62, axes=2)
        case "negative":
            return forged(count=-1, axes=2)
        case "axes":
            return forged(axes=3)
        case "version":
            return forged(version=2)
        case "number size":
            return forged(size=12 - size)
        case "other model":
            made = body[:16] + bytes(32) + body[48:]
            return made + hashlib.sha256(made).digest()
    return kept
