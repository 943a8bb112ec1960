"""Run a model once, forwards and backwards, and keep what every step did and the gradient that came back to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recollect.diagnosis.runs.call import Call, join
from recollect.diagnosis.runs.twin import Twin, apart_from_the_caller
from recollect.diagnosis.runs.unrolled import Unrolled
from recollect.engine import dispatch
from recollect.engine.reference import Step, Tap
from recollect.errors import InputError


def record(model: nn.Module, x: Any, target: Any, loss: Any, lengths: Any) -> tuple[list[Call], float]:
    """Run a twin of ``model`` on ``x`` and take the gradient of L with respect to all states.

    Returns:
        The last call of each recurrent layer, the last to run at the end; and L.

    Raises:
        InputError: the model cannot be copied or run, has no recurrent layer, holds or meets numbers that
            are not finite, or L does not depend on a recurrent state.
    """
    with apart_from_the_caller(model):
        twin = Twin(model, x, lengths)
        output = _listen(twin)
        value = twin.loss(output, target, loss)
        _differentiate(twin.calls, value)
    return twin.calls, value.item()


def unroll(model: nn.Module, x: Any, lengths: Any) -> list[Call]:
    """Run a twin of ``model`` on ``x``, forwards only.

    Returns:
        The last call of each recurrent layer, the last to run at the end.

    Raises:
        InputError: the model cannot be copied or run, has no recurrent layer, or holds or meets numbers that are
            not finite.
    """
    with apart_from_the_caller(model), torch.no_grad():
        twin = Twin(model, x, lengths)
        _listen(twin)
    found = _first_not_finite(twin.calls)
    if found:
        raise InputError(
            "a recurrent state is not finite",
            given=found,
            expected="finite states",
            remedy="look for NaN and infinities in x and the scale of the weights",
        )
    return twin.calls


def _listen(twin: Twin) -> Any:
    """Run the twin and keep the steps of its recurrent layers; return the model's output."""

    def listen(label: str) -> Tap | None:
        return None if twin.running is None else _tap(twin.running, label)

    with dispatch.listening(listen):
        output = twin.run()
    for call in twin.calls:
        for each in call.unrolled.values():
            each.lengths = call.lengths_of(each)
    return output


def _tap(call: Call, label: str) -> Tap:
    """What keeps the steps of one level and direction."""
    own = call.unrolled.setdefault(label, Unrolled(join(call.path, label), label, call.layer))

    def tap(step: Step) -> tuple[Tensor, ...]:
        # An alias parts what comes after the step and y_t from what used the state inside the step.
        cut = tuple(s.view_as(s) if s.requires_grad else s.detach().requires_grad_() for s in step.new)
        own.steps.append(step._replace(new=cut))
        return cut

    return tap


def _differentiate(calls: list[Call], value: Tensor) -> None:
    """Fill in the gradients of all calls."""
    if not torch.isfinite(value):
        raise InputError(
            "the loss is not finite, so it has no gradient",
            given=f"{value.item()}; {_first_not_finite(calls) or 'all recurrent states are finite'}",
            expected="a finite loss",
            remedy="look for NaN and infinities in x, the target and the scale of the weights",
        )
    every = [each for call in calls for each in call.unrolled.values()]
    flat = [state for each in every for step in each.steps for state in step.new]
    found = torch.autograd.grad(value, flat, allow_unused=True) if value.requires_grad and flat else ()
    if all(gradient is None for gradient in found):
        raise InputError(
            "the loss does not depend on any recurrent state",
            given=f"L = {value.item():.6g}",
            expected="a loss of the recurrent layer's outputs or final states",
            remedy="look for detach(), torch.no_grad() or numpy between the layer and the loss, or lengths of 0",
        )
    remaining = iter(
        torch.zeros_like(state) if gradient is None else gradient for gradient, state in zip(found, flat, strict=True)
    )
    for each in every:
        each.gradients = [tuple(next(remaining) for _ in step.new) for step in each.steps]


def _first_not_finite(calls: list[Call]) -> str | None:
    for call in calls:
        for each in call.unrolled.values():
            for step in each.steps:
                for name, state in zip(call.layer.cell.states, step.new, strict=True):
                    if not torch.isfinite(state).all():
                        return f"the first state that is not finite is {each.name}.{name} at step {step.t}"
    return None
