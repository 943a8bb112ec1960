"""What is compared: a subject, its shapes, and one shape of it made ready to run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Mode = Literal["inference", "training"]
# Which table a subject is in: layers against other people's, or what one of our own features costs.
Section = Literal["speed", "cells", "lengths", "options"]


class Shape(NamedTuple):
    """B rows, I inputs, H hidden units, T time steps."""

    batch: int
    inputs: int
    hidden: int
    steps: int


@dataclass(frozen=True)
class Trial:
    """One shape of a subject, ready to run.

    Attributes:
        ours, peer: one call of each.
        difference: the largest relative difference of their results, or of each from the reference where they
            compute different things; above `parity.PARITY` no speed is reported.
        multiply_adds: what one call of ours does, for the share of the machine's peak; 0 where it says nothing.
        work: units of work (`Subject.unit`) in one call of ours and of the peer; times are compared per unit.
    """

    ours: Callable[[], object]
    peer: Callable[[], object]
    difference: float
    multiply_adds: float
    work: tuple[float, float]


@dataclass(frozen=True)
class Subject:
    """One comparison over several shapes.

    Attributes:
        name: what of ours is measured.
        peer: what it is compared with.
        mode: which call.
        section: the table that it is in.
        shapes: the most telling ones first; a short budget takes them in this order.
        prepare: builds both sides with equal weights and checks their parity.
        unit: what time is divided by.
        needs: packages that the peer needs, besides those that Recollect needs.
        setup: about how many seconds `prepare` takes besides running both.
        step_seconds: about how many seconds the two spend on a time step besides arithmetic, in Python above all.
    """

    name: str
    peer: str
    mode: Mode
    section: Section
    shapes: tuple[Shape, ...]
    prepare: Callable[[Shape], Trial]
    unit: str = "step"
    needs: tuple[str, ...] = ()
    setup: float = 0.3
    step_seconds: float = 10e-6

    @property
    def title(self) -> str:
        """Such as "LSTM vs torch.nn", or "zoneout over plain LSTM" where the peer is ours."""
        return f"{self.name} {'over' if self.is_cost else 'vs'} {self.peer}"

    @property
    def is_cost(self) -> bool:
        """Whether the ratio is our time over the other's, both ours; else it is the peer's time over ours."""
        return self.peer in OURS

    def missing(self) -> list[str]:
        """The packages it needs that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


# Peers that are layers of our own: what is measured beside them is a cost, and near 1 is good.
OURS = ("our LSTM", "dense LSTM", "plain LSTM")

# A training call does the forward pass's products and two of the same size.
PASSES = {"inference": 1, "training": 3}


def multiply_adds(gates: int, shape: Shape, rows: float | None = None) -> float:
    """Multiply-adds of the products of one forward pass; ``rows`` in place of B * T where lengths are unequal."""
    steps = shape.batch * shape.steps if rows is None else rows
    return steps * gates * shape.hidden * (shape.inputs + shape.hidden)
