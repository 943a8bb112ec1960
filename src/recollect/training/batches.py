"""Batches: what a loader yields, read in one place, counted by samples, alone or in groups."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recollect.errors import InputError, TrainingError
from recollect.training._arguments import whole_number
from recollect.training.nested import mapped
from recollect.training.place import is_sequence_layer

# As users write them: see `train`.
Batches = Iterable[Any]

_FORMS = '(x, y), (x, lengths, y) or a dict with "x", "y" and further arguments of the model by name'


class Batch(NamedTuple):
    """One batch: ``loss(model(x, **kwargs), y)`` is its mean over ``samples`` samples."""

    x: Any
    kwargs: dict[str, Any]
    y: Any
    samples: int


class Group(list[Batch]):
    """The batches of one step of the optimiser."""

    @property
    def samples(self) -> int:
        return sum(batch.samples for batch in self)

    def share(self, batch: Batch) -> float:
        """The weight of one batch's mean in the mean over the whole group."""
        return batch.samples / max(self.samples, 1)


class Reader:
    """Reads what is given as batches of one model; `train` says which forms there are and how samples are counted.

    Args:
        model: called with the batches.
        batch_dim: the dimension of targets along which samples lie; None finds out.
    """

    def __init__(self, model: nn.Module, batch_dim: int | None = None) -> None:
        self._model = model
        self._dim = None if batch_dim is None else whole_number("batch_dim", batch_dim, at_least=0)
        layouts = {layer.batch_first for layer in model.modules() if is_sequence_layer(layer)}
        self._time_major = layouts == {False}
        self._keywords_taken: set[frozenset[str]] = {frozenset()}

    def __call__(self, batches: Batches) -> Iterator[Batch]:
        """The batches one by one, each as it is asked for.

        Raises:
            InputError: one is in none of the forms, or its target cannot be counted.
        """
        for given in batches:
            yield self.read(given)

    def read(self, given: Any) -> Batch:
        """One batch."""
        match given:
            case {"x": x, "y": y, **keywords} if all(isinstance(name, str) for name in keywords):
                pass
            case (x, y):
                keywords = {}
            case (x, lengths, y):
                keywords = {"lengths": lengths}
            case _:
                raise InputError(
                    "this is not a batch",
                    given=_described(given),
                    expected=_FORMS,
                    remedy="a single batch is passed as [(x, y)]",
                )
        self._check_taken(keywords)
        return Batch(x, keywords, y, self._samples(x, keywords.get("lengths"), y))

    def _check_taken(self, keywords: dict[str, Any]) -> None:
        names = frozenset(keywords)
        if names in self._keywords_taken:
            return
        try:
            signature = inspect.signature(self._model.forward)
        except (TypeError, ValueError):  # not written in Python: it will say so itself
            return
        call = f"model(x, {', '.join(f'{name}={name}' for name in keywords)})"
        try:
            signature.bind(None, **keywords)
        except TypeError as error:
            raise InputError(
                "the model does not take what the batch holds",
                given=f"{type(self._model).__name__}.forward{signature}: {error}",
                expected=f"a forward method that can be called as {call}",
                remedy=f"a batch is {_FORMS}",
            ) from error
        self._keywords_taken.add(names)

    def _samples(self, x: Any, lengths: Any, y: Any) -> int:
        if isinstance(y, MutableMapping):
            counts = {name: self._samples(x, lengths, part) for name, part in y.items()}
            if len(set(counts.values())) != 1:
                raise InputError(
                    "the parts of a target must have the same number of samples",
                    given=", ".join(f"{name!r}: {count}" for name, count in counts.items()) or "a dict of nothing",
                    remedy="say along which dimension of each they lie: batch_dim=",
                )
            return next(iter(counts.values()))
        if isinstance(y, PackedSequence):
            return len(y.data)
        if not isinstance(y, Tensor):
            raise InputError(
                "the samples of this target cannot be counted",
                given=f"y of type {type(y).__name__}",
                expected="a tensor, a PackedSequence or a dict of tensors",
                remedy="torch.as_tensor(y) for numbers, a dict of tensors for several targets, and "
                "torch.nn.utils.rnn.pad_sequence or pack_sequence for targets of unequal lengths",
            )
        if self._dim is not None:
            if self._dim >= y.ndim:
                raise InputError(
                    "the target does not have the dimension along which its samples are to be counted",
                    given=f"batch_dim={self._dim}, y of shape {list(y.shape)}",
                    expected=f"at least {self._dim + 1} dimensions",
                )
            return y.shape[self._dim]
        if y.ndim < 2:
            return y.numel()
        return y.shape[1 if self._is_time_major(x, lengths, y) else 0]

    def _is_time_major(self, x: Any, lengths: Any, y: Tensor) -> bool:
        """Whether ``y`` is known to be [T, B, ...]."""
        steps, rows = y.shape[:2]
        if isinstance(x, PackedSequence):
            # Or [N, ...], the targets of its steps.
            return int(x.batch_sizes[0]) == rows != steps != len(x.data)
        if isinstance(lengths, Sized):
            return (lengths.numel() if isinstance(lengths, Tensor) else len(lengths)) == rows != steps
        # Numbers in two dimensions are one sequence, [T, I]; indices are those of an embedding, [T, B].
        return (
            self._time_major
            and isinstance(x, Tensor)
            and x.shape[:2] == y.shape[:2]
            and (x.ndim > 2 or not x.is_floating_point())
        )


def grouped(batches: Iterable[Batch], size: int) -> Iterator[Group]:
    """Consecutive batches, ``size`` at a time; the last group may be smaller."""
    remaining = iter(batches)
    while group := Group(itertools.islice(remaining, size)):
        yield group


def device_of(model: nn.Module) -> torch.device | None:
    """The device of all parameters; None where there are several or none, or they are not there (``meta``)."""
    devices = {parameter.device for parameter in model.parameters()}
    return devices.pop() if len(devices) == 1 and torch.device("meta") not in devices else None


def moved(batches: Iterable[Batch], device: torch.device | None) -> Iterator[Batch]:
    """The batches with their tensors on ``device``, each moved as it is asked for; with None as they are.

    ``lengths`` stay where they are: ``torch.nn.utils.rnn.pack_padded_sequence`` takes them from the CPU only.
    """
    if device is None:
        yield from batches
        return
    move = functools.partial(_move, device=device)
    for batch in batches:
        kwargs = {name: value if name == "lengths" else mapped(move, value) for name, value in batch.kwargs.items()}
        yield Batch(mapped(move, batch.x), kwargs, mapped(move, batch.y), batch.samples)


def _move(value: Any, device: torch.device) -> Any:
    if device.type != "cpu" and value.is_pinned():
        return value.to(device, non_blocking=True)  # the copy may overlap with what the device still does
    return value.to(device)


def length(batches: Batches) -> int | None:
    """The number of batches, None where it is not known."""
    try:
        return len(batches)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None


def check_repeatable(name: str, batches: Batches | None, epochs: int) -> None:
    # Not by calling iter(): a DataLoader draws from the caller's random state when it is asked.
    if epochs > 1 and isinstance(batches, Iterator):
        raise InputError(
            f"{name} can be gone through only once",
            given=f"{type(batches).__name__} for {epochs} epochs",
            expected="something that starts anew each epoch",
            remedy="pass a DataLoader or list(...)",
        )


def no_batches() -> TrainingError:
    return TrainingError("there are no batches to go through", expected="at least one batch with samples")


def _described(given: Any) -> str:
    kind = type(given).__name__
    if isinstance(given, Mapping):
        return f"a {kind} with {list(given)}"
    if isinstance(given, tuple | list) and not isinstance(given, PackedSequence):
        return f"a {kind} of {len(given)}"
    return f"a {kind}"
