"""Whether a remedy helps: the same short training, with it and without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import recollect
from recollect.diagnosis.diagnosis import Diagnosis, diagnose
from recollect.diagnosis.findings import Finding
from recollect.diagnosis.flow import Curve
from recollect.diagnosis.runs.twin import Twin, apart_from_the_caller, duplicate
from recollect.errors import InputError, RecollectError
from recollect.training.generators import seeded


@dataclass(frozen=True, eq=False)
class Trial:
    """One short training.

    Attributes:
        losses: [steps + 1] the mean loss before each step and after the last; what is missing was not reached.
        norms: the global norm of the gradient in each step, as it came back.
        updates: the global norm of what each step changed in the weights.
        diagnosis: of the model after the last step; None where its numbers are no longer finite.
    """

    losses: Curve
    norms: Curve
    updates: Curve
    diagnosis: Diagnosis | None

    @property
    def reached(self) -> float:
        """The loss at the end; inf where training broke down."""
        return float(self.losses[-1]) if self.diagnosis is not None else math.inf


@dataclass(frozen=True, eq=False)
class Proof:
    """The same training of a model as it is and of one with the remedy.

    Attributes:
        finding: whose remedy it is.
        without, remedied: the two trainings, from the same weights on the same data.
        steps: of the optimiser in each.
    """

    finding: Finding
    without: Trial
    remedied: Trial
    steps: int

    @property
    def gone(self) -> bool:
        """Whether a diagnosis after the training with the remedy no longer finds the fault."""
        found = self.remedied.diagnosis
        return found is not None and all(each.kind != self.finding.kind for each in found.findings)

    @property
    def helps(self) -> bool:
        """Whether the training with the remedy ends with a lower loss."""
        return self.remedied.reached < self.without.reached

    def __str__(self) -> str:
        rows = {
            "loss at the start": lambda trial: f"{trial.losses[0]:.4g}",
            f"loss after {self.steps} steps": _end,
            "largest gradient norm": lambda trial: _largest(trial.norms),
            "largest step": lambda trial: _largest(trial.updates),
            "gradient horizon": _horizon,
            self.finding.kind: self._state,
        }
        width = max(map(len, rows))
        lines = [f"  {'':<{width}}  {'as it is':>16}  {'with the remedy':>16}"]
        for name, say in rows.items():
            lines.append(f"  {name:<{width}}  {say(self.without):>16}  {say(self.remedied):>16}")
        verdict = "helps" if self.helps else "does not help within so few steps"
        return "\n".join([f"The remedy for {self.finding.kind} {verdict}:", *lines])

    def _state(self, trial: Trial) -> str:
        if trial.diagnosis is None:
            return "broke down"
        return "there" if any(each.kind == self.finding.kind for each in trial.diagnosis.findings) else "gone"


def prove(
    model: nn.Module,
    x: Any,
    target: Any,
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    finding: Finding | None = None,
    lengths: Any = None,
    steps: int = 50,
    learning_rate: float | None = None,
    seed: int = 0,
    on_step: Callable[[], None] | None = None,
) -> Proof:
    """Apply a remedy to a copy, train a copy with it and one without, and put them side by side.

    Both trainings begin with the model's present weights, go over all of ``x`` in each step, in training mode and
    float64, and differ in nothing but the remedy, whose code is run as it stands. The model itself is left alone.

    Args:
        model, x, target, loss, lengths: as for `diagnose`; a target or a loss is needed.
        finding: whose remedy is tried; by default the first of ``diagnose(...)`` that has one.
        steps: of the optimiser.
        learning_rate: of Adam (0.003 by default), or, for a remedy that changes the step itself, such as clipping, of
            plain gradient descent (0.1), since Adam divides the size of a gradient out again.
        seed: of dropout and of remedies that draw weights.
        on_step: called after each step of either training, 2 * ``steps`` times at most.

    Raises:
        InputError: nothing was found, the remedy is not one that a training can try, or there is no loss to train
            on; or what `diagnose` raises.

    Example:
        >>> print(recollect.diagnosis.prove(model, x, y))
    """
    if target is None and loss is None:
        raise InputError("a remedy is proved by training, which needs a loss", remedy="pass target=, or loss=")
    if finding is None:
        found = diagnose(model, x, target, loss, lengths=lengths).findings
        finding = next((each for each in found if each.when in ("model", "data", "step")), None)
        if finding is None:
            raise InputError(
                "there is no remedy to try", given=f"findings: {', '.join(each.kind for each in found)}",
                remedy="pass finding= of another diagnosis, such as a thorough one",
            )  # fmt: skip
    if finding.when not in ("model", "data", "step"):
        raise InputError(
            "this remedy is not one that a short training can try",
            given=f"{finding.kind}, {'whose remedy is the training loop itself' if finding.remedy else 'without one'}",
        )
    rate = learning_rate or (0.1 if finding.when == "step" else 0.003)
    make = torch.optim.SGD if finding.when == "step" else torch.optim.Adam

    def trial(remedy: str) -> Trial:
        with apart_from_the_caller(model), seeded(seed, list(model.parameters())):
            scope = {"torch": torch, "recollect": recollect, "model": duplicate(model)}
            scope |= {"x": x, "y": target, "lengths": lengths}
            if finding.when != "step":
                exec(compile(remedy, "<remedy>", "exec"), scope)
            twin = Twin(scope["model"], scope["x"], scope["lengths"])
            twin.model.requires_grad_(True).train()
            optimizer = make(twin.model.parameters(), lr=rate)
            scope |= {"model": twin.model, "optimizer": optimizer}
            step = remedy if remedy and finding.when == "step" else "loss.backward()\noptimizer.step()"
            numbers = _train(twin, scope, compile(step, "<step>", "exec"), loss, steps, on_step)
            twin.remove_hooks()
            try:
                after = diagnose(twin.model, scope["x"], scope["y"], loss, lengths=scope["lengths"])
            except RecollectError:
                after = None  # weights or the loss are no longer finite, which `losses` shows
        return Trial(*numbers, after)

    return Proof(finding, trial(""), trial(finding.remedy), steps)


def _train(
    twin: Twin,
    scope: dict[str, Any],
    step: Any,
    loss: Callable[[Any, Any], Tensor] | None,
    steps: int,
    on_step: Callable[[], None] | None,
) -> tuple[Curve, Curve, Curve]:
    """Train until ``steps`` are made or the loss is not finite: losses, gradient norms and the norms of updates."""
    parameters = list(twin.model.parameters())
    losses, norms, updates = [], [], []
    for number in range(steps + 1):
        value = twin.loss(twin.run(), scope["y"], loss) / twin.calls[-1].batch
        losses.append(value.item())
        if number == steps or not math.isfinite(losses[-1]):
            break
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        norms.append(_norm(each for each in gradients if each is not None))
        before = [parameter.detach().clone() for parameter in parameters]
        scope["optimizer"].zero_grad()
        scope["loss"] = value
        exec(step, scope)
        updates.append(_norm(now.detach() - then for now, then in zip(parameters, before, strict=True)))
        if on_step is not None:
            on_step()
    return np.array(losses), np.array(norms), np.array(updates)


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([torch.linalg.vector_norm(each) for each in tensors]).norm())


def _end(trial: Trial) -> str:
    return f"{trial.reached:.4g}" if math.isfinite(trial.reached) else f"broke down at {len(trial.losses)}"


def _largest(values: Curve) -> str:
    return f"{values.max():.3g}" if len(values) else "-"


def _horizon(trial: Trial) -> str:
    found = trial.diagnosis
    return "-" if found is None else f"{found.gradient_horizon} of {len(found.grad_norm_by_lag)} steps"
