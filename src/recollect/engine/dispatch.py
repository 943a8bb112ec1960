"""Which backend serves a call, said openly."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from recollect.cells.cell import Cell
from recollect.engine import autograd, reference, torch_kernels
from recollect.engine.layout import Layout
from recollect.engine.memory import check_memory
from recollect.engine.plan import Variant
from recollect.engine.reference import PLAIN, Direction, Weights
from recollect.engine.settings import Chooser, Setting, as_traced
from recollect.engine.watched import Watched
from recollect.errors import BackendError, InputError, NotYetError

BACKENDS = ("auto", "reference", "llvm", "torch", "triton")
_LATER = ("triton",)
_HALF = (torch.float16, torch.bfloat16)
_SERVES = {
    "llvm": "float64, float32, float16 or bfloat16 on the CPU, without proj_size",
    "torch": "lstm, gru, rnn_tanh or rnn_relu, without resets, return_states, recurrent_dropout or zoneout",
}

_backend = Setting("backend", "auto")
_warned = False

# Label of a layer and direction -> the tap of its loop, or None.
Listener = Callable[[str], reference.Tap | None]
# Told of each layer and direction that runs.
Watcher = Callable[[Watched], None]


class _Attention(NamedTuple):
    """Who looks at the layers that run, if anybody does; a listener comes first."""

    listener: Listener | None = None
    watcher: Watcher | None = None


# One variable, so that most calls by far need a single look.
_attention: ContextVar[_Attention | None] = ContextVar("attention", default=None)


@dataclass(frozen=True)
class Choice:
    """A backend and the reasons for it."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


class set_backend(Chooser):  # noqa: N801  (used as a function; an object so that `with` can take it)
    """Choose the backend of all layers in this process, or of a ``with`` block alone.

    A block counts in its own thread or async task, before what the process has chosen, until it ends: a plain call
    inside of it shows afterwards, and threads that are started inside of it do as the process does, unless Python
    hands its context on to them (``asyncio.to_thread``). As a decorator it makes a block of each call of a function.

    A backward pass uses what its forward pass chose.

    Args:
        name: ``"auto"`` takes llvm where it can, else torch where it can, else the reference, and says so;
            ``"reference"`` is the plain loop in PyTorch; ``"llvm"`` the kernels for this CPU and ``"torch"``
            torch's own for the standard cells, each an error where they cannot serve. Half precision on a CPU is
            computed in float32 and rounded with ``"auto"`` and ``"llvm"``; in itself, and slowly, with the others.

    Raises:
        InputError: there is no such backend.
        NotYetError: ``"triton"`` is not built yet.

    Example:
        >>> recollect.set_backend("reference")      # from here on
        >>> with recollect.set_backend("llvm"):     # only in here
        ...     y, state = layer(x)
    """

    _setting = _backend

    def __init__(self, name: str) -> None:
        if name not in BACKENDS:
            raise InputError("there is no such backend", given=repr(name), expected=", ".join(BACKENDS))
        if name in _LATER:
            raise NotYetError(f"backend {name!r} is not built yet", remedy='use "auto", "llvm", "torch" or "reference"')
        super().__init__(name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Run every layer on the reference and hand the states of each step to a tap.

    Args:
        listener: called with the label of each layer and direction that runs ("l0", "l1_reverse");
            returns the tap of its loop over time, or None.
    """
    with _attending(_Attention(listener=listener)):
        yield


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Watch every layer that runs with gradients; what it returns, and its gradients, stay as they are, bit for bit.

    That is so on llvm and the reference. Layers that torch's own kernels would serve run on the reference, and so equal
    themselves to rounding. Layers of a stack run one after the other. Nothing is seen inside of a compiler or a
    torch.func transform, nor while a diagnosis listens.

    Args:
        watcher: called with each layer and direction once it has run; what comes back to its states is in there after
            the backward pass.

    Raises:
        NotYetError: by a call of a layer that trains in segments (``checkpoint=``).
    """
    with _attending(_Attention(watcher=watcher)):
        yield


@contextmanager
def _attending(attention: _Attention) -> Iterator[None]:
    token = _attention.set(attention)
    try:
        yield
    finally:
        _attention.reset(token)


def choose(
    cell: Cell,
    x: torch.Tensor,
    *,
    projected: bool = False,
    variant: Variant = PLAIN.variant,
    parameters: Sequence[torch.Tensor | None] = (),
) -> Choice:
    """Decide which backend serves rows like ``x``.

    Args:
        cell: the step.
        x: the input, or rows of it.
        projected: the layer projects its output.
        variant: what the call asks for beyond the plain recurrence.
        parameters: of the layer.

    Raises:
        BackendError: a backend was forced that cannot serve them.
    """
    if _runs_in_float32(x):
        choice = choose(cell, x[:0].float(), projected=projected, variant=variant, parameters=parameters)
        return Choice(choice.name, f"{choice.why}; computed in float32 and rounded to {x.dtype}")
    choice = _choose(cell, x, projected, variant._replace(bfloat16=False), parameters)
    if not variant.bfloat16:
        return choice
    rounded = "multiplying in bfloat16" if choice.name == "llvm" else "in float32, as only llvm multiplies in bfloat16"
    return Choice(choice.name, f"{choice.why}; {rounded}")


def _choose(
    cell: Cell, x: torch.Tensor, projected: bool, variant: Variant, parameters: Sequence[torch.Tensor | None]
) -> Choice:
    if (attention := _attention.get()) is not None and attention.listener is not None:
        return Choice("reference", "a diagnosis is listening")
    forced = _backend.name()
    if forced == "reference":
        return Choice("reference", 'chosen with set_backend("reference")')
    foreign = autograd.foreign_parameter(parameters)
    obstacles: dict[str, str | None] = {
        "llvm": "a projected output (proj_size)" if projected else autograd.obstacle(x) or foreign,
        "torch": torch_kernels.obstacle(cell, x, variant, projected=projected) or foreign,
    }
    if forced != "auto" and obstacles[forced] is not None:
        raise BackendError(
            f"the {forced} backend was forced and cannot serve this call",
            given=obstacles[forced],
            expected=_SERVES[forced],
            remedy='recollect.set_backend("auto")',
        )
    if forced != "torch" and obstacles["llvm"] is None:
        return Choice("llvm", autograd.description(x))
    if obstacles["torch"] is None:
        llvm = f"llvm cannot take {obstacles['llvm']}" if forced == "auto" else 'chosen with set_backend("torch")'
        return Choice("torch", f"torch's own kernels; {llvm}")
    llvm, torchs = obstacles["llvm"], obstacles["torch"]
    why = f"neither llvm nor torch can take {llvm}"
    if llvm != torchs:
        why = f"llvm cannot take {llvm}, and torch cannot take {torchs}"
    return Choice("reference", f"a plain loop in PyTorch, because {why}")


def kernels_serve(x: torch.Tensor) -> bool:
    """Whether llvm serves rows like ``x``, once they are more than a compiler's stand-in."""
    return as_traced(_backend, _backend.latest) in ("auto", "llvm") and autograd.could_serve(x)


def run(cell: Cell, x: torch.Tensor, layout: Layout, directions: Sequence[Direction]) -> list[reference.Result]:
    """Run one layer, in all its directions, on the backend that serves it; see `reference.run`."""
    first = directions[0]
    if _on_llvm(x, directions):
        return autograd.run(cell, x, layout, directions)  # most calls by far
    if _runs_in_float32(x):
        wide = run(cell, _wide(x), layout, [_in_float32(direction) for direction in directions])
        return [(_rounded(outputs, x.dtype), _rounded(final, x.dtype)) for outputs, final in wide]
    listener, watcher = _attention.get() or _Attention()
    projected, variant = first.weights.hr is not None, first.extras.variant
    parameters = [parameter for direction in directions for parameter in direction.parameters]
    choice = choose(cell, x, projected=projected, variant=variant, parameters=parameters)
    if choice.name == "reference" and listener is None and _backend.name() != "reference":
        _warn_once(choice)
    if watcher is not None and layout.count and torch.is_grad_enabled() and autograd.transformed(x) is None:
        return _run_watched(cell, x, layout, directions, watcher, llvm=choice.name == "llvm")
    if choice.name == "llvm":  # but watched in vain
        return autograd.run(cell, x, layout, directions)
    results = []
    for states, weights, extras, reverse, label in directions:
        if choice.name == "torch" and layout.count:
            results.append(torch_kernels.run(cell, x, layout, states, weights, reverse=reverse))
        else:
            tap = listener(label) if listener else None
            results.append(reference.run(cell, x, layout, states, weights, extras, reverse=reverse, tap=tap))
    return results


def _runs_in_float32(x: torch.Tensor) -> bool:
    """Whether rows like ``x`` are computed in float32 and rounded: half precision on the CPU, if torch's is not forced.

    Where a CPU has no instructions for them, torch multiplies such numbers at a fifth to a ninetieth of the speed, and
    it rounds the states at each step.
    """
    return x.is_cpu and x.dtype in _HALF and _backend.name() in ("auto", "llvm")


def _in_float32(direction: Direction) -> Direction:
    states, weights, extras, *_ = direction
    if extras is not PLAIN:
        extras = extras._replace(feed_mask=_wide(extras.feed_mask), keep=[_wide(part) for part in extras.keep])
    return direction._replace(
        states=None if states is None else [_wide(state) for state in states],
        weights=Weights(*map(_wide, weights[:-1]), vectors=[_wide(vector) for vector in weights.vectors]),
        extras=extras,
    )


def _wide(tensor: Any) -> Any:
    """The tensor in float32; None stays None."""
    if tensor is None:
        return None
    check_memory("a tensor in half precision", tensor)  # torch would read without
    return tensor.float()


def _rounded(results: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(result.to(dtype) for result in results)


def _run_watched(
    cell: Cell, x: torch.Tensor, layout: Layout, directions: Sequence[Direction], watcher: Watcher, *, llvm: bool
) -> list[reference.Result]:
    if directions[0].extras.checkpoint is not None:
        raise NotYetError("layers that train in segments cannot be watched yet", remedy="checkpoint=None")
    seen = [Watched(cell, layout, each.label, reverse=each.reverse) for each in directions]
    if llvm:
        shown = zip(directions, seen, strict=True)
        watched = [each._replace(extras=each.extras._replace(watched=its)) for each, its in shown]
        results = autograd.run(cell, x, layout, watched)
    else:
        results = []
        for (states, weights, extras, reverse, _), its in zip(directions, seen, strict=True):
            results.append(reference.run(cell, x, layout, states, weights, extras, reverse=reverse, tap=its.tap))
            its.ended(results[-1][1], weights.vectors)
    for its in seen:
        if its.before:
            watcher(its)
    return results


def run_layers(
    cell: Cell, x: torch.Tensor, layout: Layout, layers: Sequence[Direction]
) -> list[reference.Result] | None:
    """Run layers in one direction, each on the outputs of the one before, at the same time; None where not to."""
    return autograd.run_layers(cell, x, layout, layers) if _on_llvm(x, layers) else None


def _on_llvm(x: torch.Tensor, directions: Sequence[Direction]) -> bool:
    """Whether llvm is what serves such a layer, without asking why."""
    return (
        are_kernels_chosen()
        and directions[0].weights.hr is None
        and autograd.obstacle(x) is None
        and all(autograd.foreign_parameter(direction.parameters) is None for direction in directions)
    )


def are_kernels_chosen() -> bool:
    """Whether llvm runs whatever it serves: nobody looks on, and no other backend is forced."""
    name = _backend.name() if _backend.blocks.get() else _backend.calls[-1].name  # most calls by far are in no block
    return name in ("auto", "llvm") and _attention.get() is None


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
