"""Pairs ``(x, y)``, gone through once an epoch, alone or in groups."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from recollect.errors import InputError, TrainingError

Batches = Iterable[tuple[Any, Tensor]]


class Group(list[tuple[Any, Tensor]]):
    """The batches of one step of the optimiser."""

    @property
    def samples(self) -> int:
        return sum(samples(y) for _, y in self)

    def share(self, y: Tensor) -> float:
        """The weight of one batch's mean in the mean over the whole group."""
        return samples(y) / max(self.samples, 1)


def grouped(batches: Batches, size: int) -> Iterator[Group]:
    """Consecutive batches, ``size`` at a time; the last group may be smaller."""
    remaining = iter(batches)
    while group := Group(itertools.islice(remaining, size)):
        yield group


def samples(y: Tensor) -> int:
    """The number of samples in a batch: along the first dimension of its target."""
    return y.shape[0] if y.ndim else 1


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
    return TrainingError("there are no batches to go through", expected="at least one (x, y) pair with samples")
