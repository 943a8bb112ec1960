"""State dicts as JSON and arrays: all that a checkpoint can hold, and nothing that runs code when it is read.

JSON has no tuples, no keys but strings, no infinity and no tensors. These travel as an object with a
single key that says what it stands for: ``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``,
``{"counter": ...}`` likewise (``MultiStepLR`` has one), ``{"float": "inf"}`` and
``{"tensor": name, "dtype": "float32"}``, where ``name`` is that of an array beside the JSON.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recollect.errors import TrainingError

# What NumPy and safetensors both have. bfloat16 travels as the same bits in int16.
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    )
}


def pack(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return ``value`` as JSON, with its tensors added to ``arrays``.

    Args:
        value: None, bool, int, float, str, a dense tensor, or a tuple, list, dict or Counter of these.
        name: what ``value`` is called, in errors and in the names of arrays.
        arrays: receives copies on the CPU, or views of tensors that are there already.

    Raises:
        TrainingError: something in ``value`` is none of these.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, Tensor):
        return _pack_tensor(value, name, arrays)
    if type(value) is list:
        return [pack(part, f"{name}.{i}", arrays) for i, part in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": [pack(part, f"{name}.{i}", arrays) for i, part in enumerate(value)]}
    if type(value) in (dict, Counter):
        kind = "dict" if type(value) is dict else "counter"
        return {kind: [[pack(k, name, arrays), pack(v, f"{name}.{k}", arrays)] for k, v in value.items()]}
    raise _not_plain(name, f"{type(value).__module__}.{type(value).__qualname__}")


def unpack(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return what `pack` was given; tensors are on the CPU, in memory of their own.

    Raises:
        LookupError, TypeError, ValueError: ``tree`` is not what `pack` returns.
    """
    if isinstance(tree, list):
        return [unpack(part, arrays) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        tensor = torch.from_numpy(arrays[tree["tensor"]]).clone()
        return tensor.view(_DTYPES[tree["dtype"]])
    ((kind, content),) = tree.items()
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(unpack(part, arrays) for part in content)
    pairs = ((unpack(key, arrays), unpack(value, arrays)) for key, value in content)
    return {"dict": dict, "counter": lambda items: Counter(dict(items))}[kind](pairs)


def _pack_tensor(tensor: Tensor, name: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or dtype not in _DTYPES:
        raise _not_plain(name, f"a tensor of layout {tensor.layout} and dtype {tensor.dtype}")
    while name in arrays:
        name += "_"
    on_cpu = tensor.detach().cpu().contiguous()
    arrays[name] = (on_cpu.view(torch.int16) if tensor.dtype == torch.bfloat16 else on_cpu).numpy()
    return {"tensor": name, "dtype": dtype}


def _not_plain(name: str, given: str) -> TrainingError:
    return TrainingError(
        "a checkpoint cannot hold part of this run's state",
        given=f"{name} is {given}",
        expected="dense tensors, numbers, text, None, and tuples, lists and dicts of these",
        remedy="train without checkpoint=, or keep that part out of state_dict()",
    )
