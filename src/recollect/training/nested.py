"""Tensors in tuples, lists and dicts, as users nest them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All tensors and PackedSequences in tuples, lists and dicts, with the index expression of each."""
    if isinstance(value, Tensor | PackedSequence):
        yield path, value
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from tensors(part, f"{path}[{index}]")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors(part, f"{path}[{key!r}]")


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with every tensor and PackedSequence changed, in the order of `tensors`."""
    if isinstance(value, Tensor | PackedSequence):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(change, part) for part in value))
    if type(value) in (tuple, list):
        return type(value)(mapped(change, part) for part in value)
    if isinstance(value, MutableMapping):
        # A copy, as their kinds are made in many ways: from pairs, a default, or the values of a model's output.
        changed = copy.copy(value)
        for key, part in value.items():
            changed[key] = mapped(change, part)
        return changed
    return value
