"""Model files: safetensors with one JSON header of ours, and no pickle anywhere.

A file is written whole or not at all, holds data only, and is checked from end to end before anything
is built from it. Its bytes, numbers little-endian:

=============  ==========================================================================================
bytes          content
=============  ==========================================================================================
0 to 7         ``N``, an unsigned 64-bit integer: the length of the container's header
8 to 8+N-1     the container's header: UTF-8 JSON, ``{"__metadata__": {"recollect": HEADER}, NAME:
               {"dtype": "F32", "shape": [2, 3], "data_offsets": [BEGIN, END]}, ...}``, padded with
               spaces. Offsets count from byte 8+N. ``HEADER`` is a string that holds JSON once more.
8+N to the     the tensors, row-major, without gaps
end
=============  ==========================================================================================

``HEADER`` is one string because safetensors writes several metadata keys in random order. It is canonical
JSON: sorted keys, no spaces, ASCII only. Its keys:

``format``
    1. A reader refuses a greater number.
``kind``
    ``"module"`` for ``recollect.save``, ``"forecaster"`` for ``Forecaster.save``, ``"checkpoint"`` for
    ``recollect.training.train``.
``sha256``
    64 hexadecimal digits over, in this order: the canonical JSON of all the other keys, a newline, then
    for each tensor in the order of its name the canonical JSON of ``[name, dtype, shape]``, a newline and
    its bytes. safetensors has no checksum of its own; this one finds damage, it does not prove who wrote
    the file.
others
    what the kind needs. For ``"module"``: ``module``, the tree of layers, and ``frozen``, the names of the
    parameters that need no gradient. Tensors have their ``state_dict`` names; bfloat16, which NumPy lacks,
    travels as the same bits in ``I16``, its names listed in ``bfloat16``.

A recurrent layer carries the graph of its cell, so that a cell of the user's own is rebuilt without the
code that declared it, and a stepper can run it without PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recollect._files import write_atomically
from recollect.errors import ModelFileError

FORMAT = 1
_KEY = "recollect"
_AGAIN = "copy the file again, or save the model again"


def write_model(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a model file; the same header and tensors give the same bytes.

    Args:
        path: the file to write, replaced as a whole.
        header: what describes the model, of JSON's types; ``kind`` says which sort of model it is.
            ``format`` and ``sha256`` are added here.
        tensors: arrays of any shape, by name.

    Raises:
        OSError: the folder does not exist or cannot be written; the old file is then as it was.
    """
    from safetensors.numpy import save as to_bytes

    contiguous = {
        # The reshape gives a scalar its empty shape back, which ascontiguousarray takes from it.
        name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
        for name, array in tensors.items()
    }
    content = {**header, "format": FORMAT}
    content["sha256"] = _digest(content, contiguous)
    write_atomically(path, to_bytes(contiguous, metadata={_KEY: _canonical(content)}))


def read_model(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a model file and check all of it; imports no torch and runs nothing that the file holds.

    Returns:
        The header as it was given to ``write_model``, and the tensors by name.

    Raises:
        ModelFileError: the file is truncated, altered, foreign or of a newer format.
        OSError: there is no such file, or it cannot be read.
    """
    name = Path(path).name
    content, tensors = _open_container(_read_bytes(path, name), name)
    stated = content.pop("sha256", None)
    try:
        sound = isinstance(stated, str) and stated == _digest(content, tensors)
    except RecursionError:  # it could just be read, at the end of the stack
        sound = False
    if not sound:
        raise ModelFileError(
            f"{name} was altered after it was written: its SHA-256 does not fit its content",
            remedy=_AGAIN,
        )
    del content["format"]
    if not isinstance(content.get("kind"), str):
        raise ModelFileError(f"{name} does not say what it holds", expected="text under 'kind'")
    return content, tensors


def require_kind(header: Mapping[str, Any], kind: str, path: str | os.PathLike[str]) -> None:
    """Refuse a sound file of another kind, naming the function that reads it.

    Raises:
        ModelFileError: ``header["kind"]`` is not ``kind``.
    """
    if header["kind"] != kind:
        readers = {
            "module": "recollect.load",
            "forecaster": "recollect.Forecaster.load",
            "checkpoint": "recollect.training.train(..., checkpoint=path)",
        }
        raise ModelFileError(
            f"{Path(path).name} holds another kind of model",
            given=repr(header["kind"]),
            expected=repr(kind),
            remedy=f"read it with {readers[header['kind']]}" if header["kind"] in readers else None,
        )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(content: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_canonical(content).encode() + b"\n")
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(_canonical([name, array.dtype.name, list(array.shape)]).encode() + b"\n")
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read_bytes(path: str | os.PathLike[str], name: str) -> bytes:
    """The whole file, once its first bytes promise that it is worth reading."""
    with open(path, "rb") as file:
        start = file.read(9)
        size = os.fstat(file.fileno()).st_size
        if len(start) == 9 and 8 + int.from_bytes(start[:8], "little") <= size:
            return start + file.read()
    for magic, maker in ((b"PK\x03\x04", "torch.save or another zip"), (b"\x80", "pickle")):
        # A header of the right length begins with these bytes too, but then comes its brace.
        if start.startswith(magic) and start[8:] != b"{":
            raise _foreign(name, f"a file of {maker}, which Recollect never opens")
    raise ModelFileError(
        f"{name} is truncated or not a Recollect model file",
        given=f"{size} bytes, fewer than the file's start announces" if len(start) == 9 else f"{size} bytes",
        remedy=_AGAIN,
    )


def _open_container(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as to_arrays

    end = 8 + int.from_bytes(data[:8], "little")
    try:
        if not data[8:end].rstrip(b" ").endswith(b"}"):
            raise ValueError("the header does not end as it should")
        # to_arrays checks dtypes, shapes and offsets against the bytes; it leaves the metadata out.
        tensors = to_arrays(data)
        metadata = json.loads(data[8:end]).get("__metadata__", {})
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelFileError(
            f"{name} is truncated, altered or not a Recollect model file",
            given=str(error),
            remedy=_AGAIN,
        ) from error
    if list(metadata) != [_KEY]:
        raise _foreign(name, "a safetensors file that Recollect did not write")
    return _parse_header(metadata[_KEY], name), tensors


def _parse_header(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
        sound = isinstance(content, dict) and _canonical(content) == text
    except (ValueError, RecursionError):
        content, sound = {}, False
    if not sound:
        raise ModelFileError(f"{name} was altered after it was written: its header is not canonical JSON")
    version = content.get("format")
    if type(version) is not int or version < 1:
        raise ModelFileError(f"{name} states no format", given=repr(version), expected=f"format {FORMAT}")
    if version > FORMAT:
        raise ModelFileError(
            f"{name} was written by a newer Recollect",
            given=f"format {version}",
            expected=f"format {FORMAT} or older",
            remedy="pip install --upgrade recollect",
        )
    return content


def _foreign(name: str, given: str) -> ModelFileError:
    return ModelFileError(
        f"{name} is not a Recollect model file",
        given=given,
        expected="a file written by recollect.save or Forecaster.save",
    )
