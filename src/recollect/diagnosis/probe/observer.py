"""A probe: what goes on in a model while it trains, measured now and then."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recollect.diagnosis.flow import gradient_horizon
from recollect.diagnosis.probe.hooks import Hooks, recurrent_layers
from recollect.diagnosis.probe.probed import ProbedStep, probed_layer
from recollect.diagnosis.report import sparkline
from recollect.diagnosis.runs.call import join
from recollect.engine.watched import Watched
from recollect.training import Clipped, History, Observer
from recollect.training._arguments import whole_number
from recollect.training.culprit import Culprit

# What a probe knows of a run; by step the first four.
_HEARD = ("losses", "norms", "scales", "_places", "steps", "non_finite")


@dataclass(frozen=True)
class NonFinite:
    """The first step whose loss or gradient was not finite.

    Attributes:
        epoch, step: the epoch, and the step in it.
        culprit: the layer, time step and row in which it began; None where nobody could look, as in a loop of
            your own.
    """

    epoch: int
    step: int
    culprit: Culprit | None


class Probe(Observer):
    """Watches a model's recurrent layers, gradients and updates while it trains.

    Of every step it writes down the loss, the norm of the gradient and how it was clipped; of every ``every``-th step,
    the first one included, what a `ProbedStep` holds. Nothing that is computed changes by it, not in a bit, where
    layers run on the CPU; those that run on torch's kernels (``layer.backend_for(x)``) run in a plain loop in a step
    that is probed. Between such steps nothing is attached to the model.

    Where a step uses several batches (``accumulate=``) or calls a layer several times, its layers are shown as they
    ran last. A step that is probed needs room for one more copy of the weights, and for dL/ds of all states.

    Args:
        model: with recurrent layers of ours.
        every: how many steps there are from one that is probed to the next.

    Attributes:
        steps: the steps that were probed.
        losses: of all steps.
        norms: the global norm of the gradient in all steps, before clipping; NaN where the loss was not finite.
        scales: what the gradient was multiplied by in all steps, so that ``norm * scale`` is its norm after clipping:
            1.0 where it was left alone, 0.0 where the step was skipped.
        non_finite: the first step that was not finite, if there was one.

    Raises:
        InputError: the model has no recurrent layer of ours, or one of torch.nn.
        NotYetError: a layer trains in segments (``checkpoint=``).

    Example:
        >>> probe = Probe(model)
        >>> recollect.training.train(model, batches, ..., observers=[probe])
        >>> print(probe)

        In a loop of your own, with ``clipped = recollect.clip_by_global_norm(...)``:

        >>> with Probe(model, every=10) as probe:
        ...     for step, (x, y) in enumerate(batches):
        ...         ...
        ...         optimizer.step()
        ...         probe.on_step(step, loss.item(), clipped)
    """

    def __init__(self, model: nn.Module, every: int = 10) -> None:
        self._model, self._every = model, whole_number("every", every, at_least=1)
        self._hooks = [Hooks(layer, path, self._see) for path, layer in recurrent_layers(model).items()]
        self._weights: dict[str, tuple[Tensor, Tensor]] | None = None  # now and before, in a step that is probed
        self._seen: dict[str, tuple[Watched, int]] = {}
        self._forget()

    def _forget(self) -> None:
        self.steps: list[ProbedStep] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.scales: list[float] = []
        self.non_finite: NonFinite | None = None
        self._places: list[tuple[int, int]] = []  # epoch and step of all steps
        self._epoch = 0

    @property
    def clip_fraction(self) -> float:
        """The share of all steps whose gradient was rescaled or dropped; 0 where there were none."""
        return sum(scale < 1 for scale in self.scales) / max(1, len(self.scales))

    def on_train_begin(self, epochs: int, steps: int | None) -> None:
        self._past = {name: getattr(self, name) for name in _HEARD}  # which a run that is resumed goes on from
        self._forget()
        self._attach()

    def on_resume(self, epoch: int, step: int, history: History) -> None:
        past = self._past
        known = bisect.bisect_left(past["_places"], (epoch, step))
        self.losses, self.norms, self.scales, self._places = (past[name][:known] for name in _HEARD[:4])
        self.steps = [each for each in past["steps"] if each.index < known]
        lost = past["non_finite"]
        self.non_finite = lost if lost is not None and (lost.epoch, lost.step) < (epoch, step) else None
        self._epoch = epoch
        if known % self._every:
            self._detach()

    def on_step(self, step: int, loss: float, clipped: Clipped) -> None:
        index, place = len(self.losses), (self._epoch, step)
        self.losses.append(loss)
        self.norms.append(clipped.norm)
        self.scales.append(clipped.scale)
        self._places.append(place)
        if not clipped.finite and self.non_finite is None:
            self.non_finite = NonFinite(*place, None)
        if self._weights is not None:
            self.steps.append(self._measured(index, *place))
            self._detach()
        if (index + 1) % self._every == 0:
            self._attach()

    def on_skip(self, step: int, look: Callable[[], Culprit]) -> None:
        if self.non_finite == NonFinite(self._epoch, step, None):
            attached = self._weights is not None
            self._detach()
            self.non_finite = NonFinite(self._epoch, step, look())
            if attached:
                self._attach()

    def on_epoch(self, epoch: int, history: History) -> None:
        self._epoch = epoch + 1

    def on_train_end(self, history: History) -> None:
        self._past = {}
        self._detach()

    def __enter__(self) -> Probe:
        self._forget()
        self._attach()
        return self

    def __exit__(self, *exception: object) -> None:
        self._detach()

    def _attach(self) -> None:
        """Prepare the next step to be probed."""
        for each in self._hooks:
            each.attach()
        trained = {name: each for name, each in self._model.named_parameters() if each.requires_grad}
        self._weights = {name: (each, each.detach().clone()) for name, each in trained.items()}

    def _detach(self) -> None:
        for each in self._hooks:
            each.detach()
        self._weights = None
        self._seen.clear()

    def _see(self, path: str, watched: Watched) -> None:
        name = join(path, watched.label)
        calls = self._seen.pop(name)[1] if name in self._seen else 0
        self._seen[name] = watched, calls + 1

    def _measured(self, index: int, epoch: int, step: int) -> ProbedStep:
        assert self._weights is not None
        layers = {
            name: probed_layer(watched, calls)
            for name, (watched, calls) in self._seen.items()
            if watched.gradients is not None
        }
        with torch.no_grad():
            changes = _norms([now - before for now, before in self._weights.values()])
            sizes = _norms([before for _, before in self._weights.values()])
            gradients = {name: now.grad for name, (now, _) in self._weights.items() if now.grad is not None}
            norms = _norms(list(gradients.values()))
        updates = [_ratio(change, size) for change, size in zip(changes, sizes, strict=True)]
        return ProbedStep(
            index, epoch, step, layers,
            dict(zip(self._weights, updates, strict=True)), dict(zip(gradients, norms, strict=True)),
        )  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{len(self.losses)} steps, {len(self.steps)} of them probed; {self.clip_fraction:.0%} clipped"]
        if self.non_finite is not None:
            lost = self.non_finite
            why = "the loss or its gradient was not finite" if lost.culprit is None else str(lost.culprit)
            lines.append(f"first not finite in epoch {lost.epoch + 1}, step {lost.step + 1}: {why}")
        if self.steps:
            lines += self._described(self.steps[-1])
        return "\n".join(lines)

    def _described(self, last: ProbedStep) -> list[str]:
        norm, scale = self.norms[last.index], self.scales[last.index]
        lines = [
            f"epoch {last.epoch + 1}, step {last.step + 1}: loss {self.losses[last.index]:.3g}, "
            f"gradient {norm:.3g}" + (f", clipped to {norm * scale:.3g}" if 0 < scale < 1 else "")
        ]
        if not last.layers:
            lines.append(
                "  no gradient was seen to reach a recurrent layer; inside of torch.compile there is none to see"
            )
        names = [f"{name}.{state}" for name, layer in last.layers.items() for state in layer.state_norms]
        width = max(map(len, names), default=0)
        for name, layer in last.layers.items():
            for state, curve in layer.grad_norm_by_lag.items():
                horizon = f"horizon {gradient_horizon(curve)[0]} of {len(curve)}"
                lines.append(f"  {f'{name}.{state}':<{width}}  |dL/ds| by lag {sparkline(curve, 40)}  {horizon}")
            open_ = ", ".join(f"{gate} {each.openness.mean():.2f}" for gate, each in layer.gates.items())
            shut = ", ".join(f"{gate} {each.low + each.high:.0%}" for gate, each in layer.gates.items())
            if layer.gates:
                lines.append(f"  {name:<{width}}  gates open {open_}; saturated {shut}")
        if last.updates:
            least, most = (pick(last.updates, key=last.updates.__getitem__) for pick in (min, max))
            lines.append(
                f"  update to weight from {last.updates[least]:.1e} ({least}) to {last.updates[most]:.1e} ({most})"
            )
        return lines


def _norms(tensors: list[Tensor]) -> list[float]:
    """Norms of whole tensors, with one transfer from each device."""
    norms = [torch.linalg.vector_norm(each) for each in tensors]
    return torch.stack([each.to(norms[0].device, torch.float64) for each in norms]).tolist() if norms else []


def _ratio(change: float, size: float) -> float:
    return change / size if size else (math.inf if change else 0.0)
