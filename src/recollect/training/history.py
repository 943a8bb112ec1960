"""What a training run was like, epoch by epoch."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """One entry per finished epoch in every list; ``best_epoch`` indexes them, so it counts from 0.

    Attributes:
        train_loss: mean over the epoch's samples, measured while the weights were changing.
        validation_loss: mean over the validation samples after the epoch; empty without validation.
        gradient_norm: mean global norm before clipping, over the steps in which it was finite; NaN if none.
        clipped_fraction: share of the steps whose gradient was rescaled or dropped.
        skipped_steps: steps without an update because their gradient was not finite.
        seconds: wall-clock time, validation included.
        best_epoch: the epoch with the lowest validation loss; None without validation.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    clipped_fraction: list[float] = field(default_factory=list)
    skipped_steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None

    def to_json(self) -> str:
        """The fields as a JSON object; NaN, which JSON does not have, becomes null."""
        return json.dumps(_without_nan(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
