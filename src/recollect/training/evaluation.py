"""Means over data that a model is not trained on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from recollect.errors import TrainingError
from recollect.training.batches import Batch, Batches, Reader, device_of, moved, no_batches
from recollect.training.checks import as_number, check_metrics, check_scalar
from recollect.training.history import Evaluation

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], Tensor | float]


@overload
def evaluate(
    model: nn.Module, batches: Batches, loss: Loss, *, metrics: None = None, batch_dim: int | None = None
) -> float: ...
@overload
def evaluate(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    *,
    metrics: Mapping[str, Metric],
    batch_dim: int | None = None,
) -> Evaluation: ...
def evaluate(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    *,
    metrics: Mapping[str, Metric] | None = None,
    batch_dim: int | None = None,
) -> float | Evaluation:
    """The mean of ``loss`` over all samples, in eval mode and without gradients.

    Args:
        model: its modes are put back afterwards.
        batches: in the forms that :func:`train` takes, moved to the model's device as there.
        loss: ``loss(output, y)`` returns the mean over the batch as a scalar tensor.
        metrics: further functions by name: ``metric(output, y)`` returns the mean over the batch as a number
            or a scalar tensor.
        batch_dim: the dimension of ``y`` along which samples are counted; None as in :func:`train`.

    Returns:
        The mean loss; with ``metrics`` an :class:`Evaluation`.

    Raises:
        InputError: an argument, a batch, or what a function returns, cannot be used.
        TrainingError: no batches, or the mean loss is not finite.
    """
    check_metrics(metrics)
    measured = measure(model, Reader(model, batch_dim)(batches), loss, metrics or {})
    return measured.loss if metrics is None else measured


def measure(model: nn.Module, batches: Iterable[Batch], loss: Loss, metrics: Mapping[str, Metric]) -> Evaluation:
    """What `evaluate` does, of batches that have been read."""
    total, count = 0.0, 0
    totals = dict.fromkeys(metrics, 0.0)
    with mode(model, training=False), torch.inference_mode():
        for batch in moved(batches, device_of(model)):
            output = model(batch.x, **batch.kwargs)
            total += check_scalar("loss", loss(output, batch.y)).item() * batch.samples
            for name, metric in metrics.items():
                totals[name] += as_number(f"metric {name!r}", metric(output, batch.y)) * batch.samples
            count += batch.samples
    if not count:
        raise no_batches()
    if not math.isfinite(total):
        raise TrainingError(
            "the validation loss is not finite",
            given=f"{total / count} over {count} samples",
            remedy="look for NaN in the validation data, or lower the learning rate",
        )
    return Evaluation(total / count, {name: sum_ / count for name, sum_ in totals.items()})


@contextlib.contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or eval mode, and every part of it back afterwards; so is the recording of gradients.

    An interrupt in the middle of torch.no_grad, as optimisers use it, leaves that on.
    """
    # Module by module: a part that the user froze in eval mode is handed back that way.
    before = {module: module.training for module in model.modules()}
    records = torch.is_grad_enabled()
    try:
        model.train(training)
        yield
    finally:
        torch.set_grad_enabled(records)
        for module, was_training in before.items():
            module.training = was_training
