"""What streams remember, as bytes.

Numbers are little-endian; the bytes say nothing of the machine, so that another one can go on.

==============  =======================================================================================
bytes           content
==============  =======================================================================================
0 to 7          ``RECSNAP`` and a zero byte
8 to 11         the version of this format, 1
12 to 15        bytes of a number: 4 for float32, 8 for float64
16 to 47        the fingerprint of the model, SHA-256
48 to 55        B, the number of streams; 0 where the first step has not come yet
56 to 63        axes of a step's input: 2 for [B, I], 1 for [I]; 0 where the first step has not come yet
64 to the rest  for each recurrent layer, the lowest first, each state in its cell's order: [B, H], row-major
the last 32     SHA-256 of all bytes before
==============  =======================================================================================

A model of linear layers alone remembers nothing, so B and the axes are 0 there too. The checksum finds damage; it does
not prove who wrote the bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np

from recollect.errors import InputError
from recollect.stream.model import Model

VERSION = 1
_MAGIC = b"RECSNAP\0"
_HEAD = struct.Struct("<8sII32sqq")
_SUM = hashlib.sha256().digest_size
_AGAIN = "restore another snapshot of this model, or start with reset()"


def pack(model: Model, count: int, axes: int, states: Sequence[np.ndarray]) -> bytes:
    """The bytes of the states [B, H] of ``count`` streams."""
    if not states:  # nothing goes on, and the number of streams could not be checked against anything
        count = axes = 0
    head = _HEAD.pack(_MAGIC, VERSION, model.dtype.itemsize, model.fingerprint, count, axes)
    kind = model.dtype.newbyteorder("<")
    body = b"".join([head, *(state.astype(kind, copy=False).tobytes() for state in states)])
    return body + hashlib.sha256(body).digest()


def unpack(model: Model, data: bytes) -> tuple[int, int, list[np.ndarray]]:
    """The number of streams, the axes of their input and the states that `pack` was given, once all is checked.

    Raises:
        InputError: the bytes are truncated, altered, of another model or of another version.
    """
    body, checksum = data[:-_SUM], data[-_SUM:]
    if len(body) < _HEAD.size or not body.startswith(_MAGIC):
        raise InputError(
            "these bytes are not a snapshot", given=f"{len(data)} bytes", expected="what Stepper.snapshot returned",
            remedy=_AGAIN,
        )  # fmt: skip
    _, version, size, fingerprint, count, axes = _HEAD.unpack_from(body)
    if version != VERSION:
        raise InputError(
            "the snapshot has another version", given=version, expected=VERSION,
            remedy="restore it with the Recollect that took it",
        )  # fmt: skip
    if hashlib.sha256(body).digest() != checksum:
        raise InputError(
            "the snapshot is truncated or was altered: its checksum does not fit", given=f"{len(data)} bytes",
            remedy=_AGAIN,
        )  # fmt: skip
    if fingerprint != model.fingerprint:
        raise InputError(
            "the snapshot is of another model", given=f"fingerprint {fingerprint.hex()[:16]}",
            expected=f"fingerprint {model.fingerprint.hex()[:16]}",
            remedy="restore it into the model it was taken from",
        )  # fmt: skip
    hidden = [layer.hidden for layer in model.layers if layer.remembers for _ in layer.initial]
    known = (count, axes) == (0, 0) or (count > 0 and axes == 2) or (count, axes) == (1, 1)
    known &= bool(hidden) or count == 0
    if not known or size != model.dtype.itemsize or len(body) != _HEAD.size + size * count * sum(hidden):
        raise InputError(
            "the snapshot does not hold what it says", given=f"{count} streams of {len(body)} bytes", remedy=_AGAIN
        )
    states, start = [], _HEAD.size
    for width in hidden:
        numbers = np.frombuffer(body, model.dtype.newbyteorder("<"), count * width, start)
        states.append(numbers.reshape(count, width))
        start += numbers.nbytes
    return count, axes, states
