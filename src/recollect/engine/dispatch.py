"""Which backend serves a call, said openly."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from recollect.cells.cell import Cell
from recollect.engine import autograd, reference
from recollect.errors import BackendError, InputError, NotYetError

BACKENDS = ("auto", "reference", "llvm", "torch", "triton")
_LATER = ("torch", "triton")

_forced = "auto"
_warned = False

# Set while a diagnosis listens: label of a layer and direction -> the tap of its loop, or None.
_listener: ContextVar[Callable[[str], reference.Tap | None] | None] = ContextVar("listener", default=None)


@dataclass(frozen=True)
class Choice:
    """A backend and the reasons for it."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


class set_backend:  # noqa: N801  (used as a function; an object only so that `with` can undo it)
    """Choose the backend of all layers in this process, or of a ``with`` block.

    A backward pass uses what its forward pass chose.

    Args:
        name: ``"auto"`` takes llvm where it can and says so where it cannot; ``"reference"`` is the plain
            loop in PyTorch; ``"llvm"`` the kernels for this CPU, an error where they cannot serve.

    Raises:
        InputError: there is no such backend.
        NotYetError: ``"torch"`` and ``"triton"`` are not built yet.

    Example:
        >>> recollect.set_backend("reference")      # from here on
        >>> with recollect.set_backend("llvm"):     # only in here
        ...     y, state = layer(x)
    """

    def __init__(self, name: str) -> None:
        global _forced
        if name not in BACKENDS:
            raise InputError("there is no such backend", given=repr(name), expected=", ".join(BACKENDS))
        if name in _LATER:
            raise NotYetError(f"backend {name!r} is not built yet", remedy='use "auto", "reference" or "llvm"')
        self._before, _forced = _forced, name

    def __enter__(self) -> set_backend:
        return self

    def __exit__(self, *exception: object) -> None:
        global _forced
        _forced = self._before


@contextmanager
def listening(listener: Callable[[str], reference.Tap | None]) -> Iterator[None]:
    """Run every layer on the reference and hand the states of each step to a tap.

    Args:
        listener: called with the label of each layer and direction that runs ("l0", "l1_reverse");
            returns the tap of its loop over time, or None.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def choose(x: torch.Tensor) -> Choice:
    """Decide which backend serves rows like ``x``.

    Raises:
        BackendError: a backend was forced that cannot serve them.
    """
    if _listener.get() is not None:
        return Choice("reference", "a diagnosis is listening")
    if _forced == "reference":
        return Choice("reference", 'chosen with set_backend("reference")')
    obstacle = autograd.obstacle(x)
    if obstacle is None:
        return Choice("llvm", autograd.description(x))
    if _forced == "llvm":
        raise BackendError(
            "the llvm backend was forced and cannot serve this call",
            given=obstacle,
            expected="float32 or float64 on the CPU",
            remedy='recollect.set_backend("auto")',
        )
    return Choice("reference", f"a plain loop in PyTorch, because llvm cannot take {obstacle}")


def run(
    cell: Cell,
    x: torch.Tensor,
    batch_sizes: Sequence[int],
    states: Sequence[torch.Tensor],
    weights: reference.Weights,
    *,
    reverse: bool,
    label: str,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Run one layer in one direction on the backend that serves it; see `reference.run`.

    Args:
        label: the layer and direction, such as ``"l0_reverse"``, for whoever listens.
    """
    listener = _listener.get()
    if listener is None and _forced != "reference":
        if autograd.obstacle(x) is None:
            return autograd.run(cell, x, batch_sizes, states, weights, reverse=reverse)
        _warn_once(choose(x))  # raises where llvm was forced
    tap = listener(label) if listener else None
    return reference.run(cell, x, batch_sizes, states, weights, reverse=reverse, tap=tap)


def _warn_once(choice: Choice) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"recollect runs on the {choice}; layer.backend_for(x) tells", stacklevel=_users_line())


def _users_line() -> int:
    """The stack level of the first caller outside of this package and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("recollect", "torch"):
        level, frame = level + 1, frame.f_back
    return level
