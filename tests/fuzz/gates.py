"""Checks that can be taken away, so that tests see that the fuzzing would notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from recollect.engine import layout, readable
from recollect.nn import checks, rows
from recollect.stream import stepper


def _nothing(*_: Any) -> None:
    """In place of a check."""


def _any_shape(tensors: Any, shapes: Any, dtype: Any, names: Any = ()) -> list[Any]:
    """`readable.readable` that looks at memory alone."""
    return [
        None if tensor is None else readable._dense(name, tensor) for tensor, name in zip(tensors, names, strict=True)
    ]


def _any_memory(gate: Any, tensors: Any) -> list[int]:
    """`readable.Gate.addresses` that trusts its tensors."""
    return [tensor.data_ptr() for tensor in tensors]


def _any_sizes(x: Any) -> list[int]:
    return x.batch_sizes.tolist()


def _any_order(x: Any, batch: int) -> Any:
    return x.sorted_indices, x.unsorted_indices


# What is put in place of which attribute.
_Change = tuple[Any, str, Callable[..., Any]]
BROKEN: dict[str, list[_Change]] = {
    "memory": [(module, "check_memory", _nothing) for module in (readable, rows, layout)],
    "shapes": [(readable, "readable", _any_shape)],
    "addresses": [(readable.Gate, "addresses", _any_memory)],
    "sizes": [(module, "checked_sizes", _any_sizes) for module in (checks, rows)],
    "order": [(rows, "_checked_order", _any_order)],
    "input": [(stepper, "_as_numbers", lambda x, _: np.asarray(x))],
}


@contextmanager
def broken(name: str | None) -> Iterator[None]:
    """Without a check, or with all of them."""
    with ExitStack() as patches:
        for owner, attribute, substitute in BROKEN.get(name or "", []):
            patches.enter_context(mock.patch.object(owner, attribute, substitute))
        yield
