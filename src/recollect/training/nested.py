"""Tensors in tuples, lists and dicts, as users nest them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
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
    elif isinstance(value, dict):
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
    if isinstance(value, dict):
        # A copy, as subclasses are not made alike: an OrderedDict from pairs, a defaultdict from its default.
        changed = copy.copy(value)
        changed.update((key, mapped(change, part)) for key, part in value.items())
        return changed
    return value
