"""Arguments of a training run that are refused before anything is done, and numbers that a user's functions return."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from recollect.errors import InputError
from recollect.training.history import History

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# What else stands beside the numbers of an epoch where they are written down.
_TAKEN = {*(field.name for field in fields(History)), "epoch", "step"}


def check_optimizer(optimizer: object, model: nn.Module) -> None:
    """InputError unless ``optimizer`` steps without a closure and holds something of ``model`` that learns."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            "optimizer is none of PyTorch's",
            given=optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__,
            expected="a torch.optim.Optimizer, such as torch.optim.Adam(model.parameters())",
        )
    _, *arguments = inspect.signature(type(optimizer).step).parameters.values()
    if any(argument.default is argument.empty and argument.kind in _POSITIONAL for argument in arguments):
        raise InputError(
            "this optimizer evaluates the model several times in a step",
            given=type(optimizer).__name__,
            expected="one that steps without a closure, such as Adam, AdamW, RMSprop or SGD",
            remedy="use one of these, or write the loop yourself around optimizer.step(closure)",
        )
    learns = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not learns:
        any_at_all = any(True for _ in model.parameters())
        raise InputError(
            "the model cannot be trained",
            given=f"{type(model).__name__}, " + ("all of it frozen" if any_at_all else "which has no parameters"),
            expected="at least one parameter with requires_grad",
            remedy="model.requires_grad_() thaws all of it" if any_at_all else None,
        )
    if not learns & held:
        raise InputError(
            "the optimizer holds none of the model's trainable parameters, so nothing would be learned",
            given=f"{type(optimizer).__name__} with {len(held)} parameter{'s' * (len(held) != 1)} of something else",
            remedy="make the optimizer from model.parameters(), after whatever replaces these",
        )


def check_scheduler(scheduler: object, per: str, optimizer: torch.optim.Optimizer, *, has_validation: bool) -> None:
    """InputError unless ``scheduler`` can step after each ``per``."""
    if per not in ("epoch", "step"):
        raise InputError("scheduler_per cannot be used", given=repr(per), expected="'epoch' or 'step'")
    if scheduler is None:
        return
    if not isinstance(scheduler, LRScheduler):
        raise InputError(
            "scheduler is none of PyTorch's",
            given=type(scheduler).__name__,
            expected="a torch.optim.lr_scheduler.LRScheduler",
        )
    if scheduler.optimizer is not optimizer:
        raise InputError("scheduler was made for another optimizer", remedy="make it with the optimizer given here")
    if isinstance(scheduler, ReduceLROnPlateau) and (not has_validation or per != "epoch"):
        raise InputError(
            "ReduceLROnPlateau follows the validation loss, which is measured once an epoch",
            given=f"validation={'...' if has_validation else 'None'}, scheduler_per={per!r}",
            remedy="pass validation=, and leave scheduler_per out",
        )


def check_metrics(metrics: object) -> None:
    """InputError unless ``metrics`` is None or functions by names that mean nothing else in a history."""
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise InputError(
            "metrics have names", given=type(metrics).__name__, expected="a dict such as {'accuracy': function}"
        )
    for name, metric in metrics.items():
        if not isinstance(name, str) or not name:
            raise InputError("a metric's name cannot be used", given=repr(name), expected="some text")
        if name in _TAKEN:
            raise InputError(
                "a metric's name cannot be used", given=repr(name), expected="another name than those of a History"
            )
        if not callable(metric):
            raise InputError(
                f"metric {name!r} cannot be computed",
                given=type(metric).__name__,
                expected="a function of the model's output and y",
            )


def check_scalar(what: str, value: object) -> Tensor:
    """Return ``value``; InputError unless it is a tensor of one real number."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value
    given = f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(f"{what} must return one number", given=given, expected="a real scalar tensor")


def check_has_gradient(value: Tensor) -> None:
    """InputError unless a loss can be differentiated."""
    if not value.requires_grad:
        raise InputError(
            "the loss has no gradient",
            given="a tensor that was not computed from the model's output by differentiable operations",
            remedy="compute it in PyTorch, without detach(), item(), argmax() and torch.no_grad()",
        )


def as_number(what: str, value: object) -> float:
    """Return ``value`` as a float; InputError unless it is a real number or a tensor of one."""
    return float(value) if isinstance(value, numbers.Real) else float(check_scalar(what, value).item())
