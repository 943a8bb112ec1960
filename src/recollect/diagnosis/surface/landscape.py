"""The loss of a model as a function of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from recollect.diagnosis.runs.twin import Twin, explained
from recollect.diagnosis.surface.weights import Weights
from recollect.errors import InputError
from recollect.training.generators import seeded


class Landscape:
    """The loss on one batch, all of it at once, wherever the weights are put.

    It works on a twin: use it inside of `apart_from_the_caller`. Whatever a forward pass draws at random it draws
    alike everywhere.

    Args:
        model, x, target, loss, lengths: as for `diagnose`.
        on_call: called after each time that the model has run.

    Attributes:
        model: the twin's.
        weights: of it.
        moving: which of its tensors ask for a gradient in the user's model; all of them if none does.

    Raises:
        InputError: what `Twin` raises; the loss is not finite where the weights are, or differs from call to call.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Any,
        target: Any,
        loss: Callable[[Any, Any], Tensor] | None,
        lengths: Any,
        on_call: Callable[[], None],
    ) -> None:
        self._twin = Twin(model, x, lengths)
        self._target, self._loss, self._on_call = target, loss, on_call
        self.model = self._twin.model.requires_grad_(True)
        self.weights = Weights(self.model)
        asking = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.moving = [name in asking or not asking for name in self.weights.tensors]
        here = self.weights.get()
        self.here = self(here)
        if not math.isfinite(self.here):
            raise InputError(
                "the loss is not finite with the present weights, so there is no surface around them",
                given=self.here,
                expected="a finite loss",
                remedy="look for NaN and infinities in x, the target and the scale of the weights",
            )
        if not math.isclose(again := self(here), self.here, rel_tol=1e-12):
            raise InputError(
                "the loss changes from one call to the next, with the same weights",
                given=f"{self.here:.6g}, then {again:.6g}",
                expected="a forward pass that depends on nothing but weights and x",
                remedy="let forward start from a new state each time",
            )

    def __call__(self, vector: Tensor) -> float:
        """The loss with weights [P]; it may be infinite or NaN."""
        self.weights.put(vector)
        with torch.no_grad():
            return self._value().item()

    def gradient(self, vector: Tensor) -> tuple[float, Tensor]:
        """The loss with weights [P], and its gradient [P]."""
        self.weights.put(vector)
        value = self._value()
        tensors = list(self.weights.tensors.values())
        found = [None] * len(tensors)
        if value.requires_grad:
            with explained("the gradient could not be computed"):
                found = torch.autograd.grad(value, tensors, allow_unused=True)
        parts = [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]
        return value.item(), torch.cat([part.flatten().cpu() for part in parts])

    def _value(self) -> Tensor:
        with seeded(0, list(self.weights.tensors.values())):
            value = self._twin.loss(self._twin.run(), self._target, self._loss, times_batch=False)
        self._on_call()
        return value
