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
from recollect.engine import autograd, reference, torch_kernels
from recollect.engine.layout import Layout
from recollect.engine.plan import Variant
from recollect.engine.reference import PLAIN, Direction
from recollect.errors import BackendError, InputError, NotYetError

BACKENDS = ("auto", "reference", "llvm", "torch", "triton")
_LATER = ("triton",)
_SERVES = {
    "llvm": "float32 or float64 on the CPU, without proj_size",
    "torch": "lstm, gru, rnn_tanh or rnn_relu, without resets, return_states, recurrent_dropout or zoneout",
}

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
        name: ``"auto"`` takes llvm where it can, else torch where it can, else the reference, and says so;
            ``"reference"`` is the plain loop in PyTorch; ``"llvm"`` the kernels for this CPU and ``"torch"``
            torch's own for the standard cells, each an error where they cannot serve.

    Raises:
        InputError: there is no such backend.
        NotYetError: ``"triton"`` is not built yet.

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
            raise NotYetError(f"backend {name!r} is not built yet", remedy='use "auto", "llvm", "torch" or "reference"')
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


def choose(cell: Cell, x: torch.Tensor, *, projected: bool = False, variant: Variant = PLAIN.variant) -> Choice:
    """Decide which backend serves rows like ``x``.

    Args:
        cell: the step.
        x: the input, or rows of it.
        projected: the layer projects its output.
        variant: what the call asks for beyond the plain recurrence.

    Raises:
        BackendError: a backend was forced that cannot serve them.
    """
    choice = _choose(cell, x, projected, variant._replace(bfloat16=False))
    if not variant.bfloat16:
        return choice
    rounded = "multiplying in bfloat16" if choice.name == "llvm" else "in float32, as only llvm multiplies in bfloat16"
    return Choice(choice.name, f"{choice.why}; {rounded}")


def _choose(cell: Cell, x: torch.Tensor, projected: bool, variant: Variant) -> Choice:
    if _listener.get() is not None:
        return Choice("reference", "a diagnosis is listening")
    if _forced == "reference":
        return Choice("reference", 'chosen with set_backend("reference")')
    obstacles: dict[str, str | None] = {
        "llvm": "a projected output (proj_size)" if projected else autograd.obstacle(x),
        "torch": torch_kernels.obstacle(cell, x, variant, projected=projected),
    }
    if _forced != "auto" and obstacles[_forced] is not None:
        raise BackendError(
            f"the {_forced} backend was forced and cannot serve this call",
            given=obstacles[_forced],
            expected=_SERVES[_forced],
            remedy='recollect.set_backend("auto")',
        )
    if _forced != "torch" and obstacles["llvm"] is None:
        return Choice("llvm", autograd.description(x))
    if obstacles["torch"] is None:
        llvm = f"llvm cannot take {obstacles['llvm']}" if _forced == "auto" else 'chosen with set_backend("torch")'
        return Choice("torch", f"torch's own kernels; {llvm}")
    llvm, torchs = obstacles["llvm"], obstacles["torch"]
    why = f"neither llvm nor torch can take {llvm}"
    if llvm != torchs:
        why = f"llvm cannot take {llvm}, and torch cannot take {torchs}"
    return Choice("reference", f"a plain loop in PyTorch, because {why}")


def kernels_serve(x: torch.Tensor) -> bool:
    """Whether llvm serves rows like ``x``, once they are more than a compiler's stand-in."""
    return _forced in ("auto", "llvm") and autograd.could_serve(x)


def run(cell: Cell, x: torch.Tensor, layout: Layout, directions: Sequence[Direction]) -> list[reference.Result]:
    """Run one layer, in all its directions, on the backend that serves it; see `reference.run`."""
    first = directions[0]
    if _on_llvm(x, first):
        return autograd.run(cell, x, layout, directions)  # most calls by far
    listener = _listener.get()
    choice = choose(cell, x, projected=first.weights.hr is not None, variant=first.extras.variant)
    if choice.name == "reference" and listener is None and _forced != "reference":
        _warn_once(choice)
    results = []
    for states, weights, extras, reverse, label in directions:
        if choice.name == "torch" and layout.count:
            results.append(torch_kernels.run(cell, x, layout, states, weights, reverse=reverse))
        else:
            tap = listener(label) if listener else None
            results.append(reference.run(cell, x, layout, states, weights, extras, reverse=reverse, tap=tap))
    return results


def run_layers(
    cell: Cell, x: torch.Tensor, layout: Layout, layers: Sequence[Direction]
) -> list[reference.Result] | None:
    """Run layers in one direction, each on the outputs of the one before, at the same time; None where not to."""
    return autograd.run_layers(cell, x, layout, layers) if _on_llvm(x, layers[0]) else None


def _on_llvm(x: torch.Tensor, direction: Direction) -> bool:
    """Whether llvm is what serves such a layer, without asking why."""
    return (
        _listener.get() is None
        and _forced in ("auto", "llvm")
        and direction.weights.hr is None
        and autograd.obstacle(x) is None
    )


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
