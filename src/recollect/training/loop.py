"""The training loop, written out: every step is a line that can be read and replaced."""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recollect.errors import InputError, TrainingError
from recollect.training._arguments import positive_limit, whole_number
from recollect.training.clip import Clipped, clip_by_global_norm
from recollect.training.history import History
from recollect.training.observers import Observer

Batches = Iterable[tuple[Any, Tensor]]
Loss = Callable[[Any, Tensor], Tensor]

# A bad batch now and then is skipped; this many in a row are no accident.
_MOST_SKIPS_IN_A_ROW = 5


def train(
    model: nn.Module,
    batches: Batches,
    *,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    max_norm: float | None = None,
    validation: Batches | None = None,
    patience: int | None = None,
    observers: Sequence[Observer] = (),
    seed: int | None = None,
) -> History:
    """Train ``model`` on ``batches`` for at most ``epochs`` passes.

    With ``validation``, the model ends with the weights (and buffers) of the epoch that had the lowest
    validation loss, however the loop ends: also after an error or Ctrl-C, which are raised again. The
    train and eval modes of the model's parts are put back as they were.

    A step whose gradient is not finite is skipped, with or without ``max_norm``.

    Args:
        model: called as ``model(x)``; what it returns is what ``loss`` takes.
        batches: pairs ``(x, y)``, such as a DataLoader; gone through once an epoch. Samples are counted
            along the first dimension of ``y``.
        loss: ``loss(model(x), y)`` returns the mean over the batch as a scalar tensor.
        optimizer: holds the parameters to train; steps without a closure.
        epochs: passes over ``batches``, at least 1.
        max_norm: limit on the global norm of the gradient; None measures it only.
        validation: held-out pairs ``(x, y)``, looked at after every epoch.
        patience: stop after this many epochs in a row without a lower validation loss.
        observers: told what happens; see :class:`Observer`.
        seed: seeds PyTorch's generators (CPU and CUDA) for this run only: dropout and a DataLoader's
            shuffling repeat, and the caller's random state is untouched. None uses that state. A
            DataLoader with a generator of its own follows that one instead.

    Returns:
        The :class:`History` of the run.

    Raises:
        InputError: an argument that cannot be used.
        TrainingError: no batches, a loss that is not finite, or gradients that are not finite in 5 steps
            in a row.
    """
    epochs = whole_number("epochs", epochs, at_least=1)
    limit = math.inf if max_norm is None else positive_limit("max_norm", max_norm)
    if patience is not None:
        patience = whole_number("patience", patience, at_least=1)
        if validation is None:
            raise InputError("patience needs a validation loss to watch", remedy="pass validation=")
    _check_repeatable("batches", batches, epochs)
    _check_repeatable("validation", validation, epochs)
    # The optimiser's parameters, not the model's: a frozen part would add to the norm and is never zeroed.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    history = History()
    best: dict[str, Any] | None = None
    skips_in_a_row = 0
    with _seeded(seed, parameters), _mode(model, training=True), contextlib.ExitStack() as at_end:
        for observer in observers:
            observer.on_train_begin(epochs, _length(batches))
            at_end.callback(observer.on_train_end, history)
        try:
            for epoch in range(epochs):
                started = time.perf_counter()
                steps: list[_Step] = []
                for step, (x, y) in enumerate(batches):
                    optimizer.zero_grad()
                    output = model(x)
                    value = loss(output, y)
                    _check_loss(value, epoch, step)
                    value.backward()
                    clipped = clip_by_global_norm(parameters, limit)
                    optimizer.step()

                    steps.append(_Step(value.item(), _samples(y), clipped))
                    for observer in observers:
                        observer.on_step(step, value.item(), clipped)
                    skips_in_a_row = 0 if clipped.finite else skips_in_a_row + 1
                    if skips_in_a_row == _MOST_SKIPS_IN_A_ROW:
                        raise _lost_gradient(epoch, step)
                if not steps:
                    raise _no_batches()

                validation_loss = None if validation is None else evaluate(model, validation, loss)
                _record(history, steps, validation_loss, time.perf_counter() - started)
                if history.best_epoch == epoch:
                    best = copy.deepcopy(model.state_dict())
                for observer in observers:
                    observer.on_epoch(epoch, history)
                if patience and history.best_epoch is not None and epoch - history.best_epoch >= patience:
                    break
        finally:
            if best is not None:
                model.load_state_dict(best)
    return history


def evaluate(model: nn.Module, batches: Batches, loss: Loss) -> float:
    """The mean of ``loss`` over all samples, in eval mode and without gradients.

    Args:
        model: called as ``model(x)``; its modes are put back afterwards.
        batches: pairs ``(x, y)``; samples are counted along the first dimension of ``y``.
        loss: ``loss(model(x), y)`` returns the mean over the batch as a scalar tensor.

    Raises:
        TrainingError: no batches, or the mean is not finite.
    """
    total, samples = 0.0, 0
    with _mode(model, training=False), torch.inference_mode():
        for x, y in batches:
            total += loss(model(x), y).item() * _samples(y)
            samples += _samples(y)
    if not samples:
        raise _no_batches()
    if not math.isfinite(total):
        raise TrainingError(
            "the validation loss is not finite",
            given=f"{total / samples} over {samples} samples",
            remedy="look for NaN in the validation data, or lower the learning rate",
        )
    return total / samples


class _Step(NamedTuple):
    loss: float
    samples: int
    clipped: Clipped


def _record(history: History, steps: list[_Step], validation_loss: float | None, seconds: float) -> None:
    norms = [step.clipped.norm for step in steps if step.clipped.finite]
    history.train_loss.append(sum(step.loss * step.samples for step in steps) / sum(step.samples for step in steps))
    history.gradient_norm.append(statistics.fmean(norms) if norms else math.nan)
    history.clipped_fraction.append(statistics.fmean(step.clipped.clipped for step in steps))
    history.skipped_steps.append(sum(not step.clipped.finite for step in steps))
    history.seconds.append(seconds)
    if validation_loss is not None:
        if validation_loss < min(history.validation_loss, default=math.inf):
            history.best_epoch = len(history.validation_loss)
        history.validation_loss.append(validation_loss)


def _check_loss(value: Tensor, epoch: int, step: int) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError("loss must return one number", given=given, expected="a scalar tensor")
    if not math.isfinite(value.item()):
        raise TrainingError(
            "the training loss is not finite",
            given=f"{value.item()} in epoch {epoch + 1}, step {step + 1}",
            remedy="lower the learning rate, clip with a smaller max_norm, scale inputs and targets, "
            "or look for NaN in the data",
        )


def _lost_gradient(epoch: int, step: int) -> TrainingError:
    return TrainingError(
        f"the gradient was not finite in {_MOST_SKIPS_IN_A_ROW} steps in a row",
        given=f"the last of them was epoch {epoch + 1}, step {step + 1}",
        remedy="lower the learning rate, scale the inputs, or look for a division by 0 in the loss",
    )


def _samples(y: Tensor) -> int:
    return y.shape[0] if y.ndim else 1


def _length(batches: Batches) -> int | None:
    try:
        return len(batches)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None


def _no_batches() -> TrainingError:
    return TrainingError("there are no batches to go through", expected="at least one (x, y) pair with samples")


def _check_repeatable(name: str, batches: Batches | None, epochs: int) -> None:
    # Not by calling iter(): a DataLoader draws from the caller's random state when it is asked.
    if epochs > 1 and isinstance(batches, Iterator):
        raise InputError(
            f"{name} can be gone through only once",
            given=f"{type(batches).__name__} for {epochs} epochs",
            expected="something that starts anew each epoch",
            remedy="pass a DataLoader or list(...)",
        )


@contextlib.contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    # Module by module: a part that the user froze in eval mode is handed back that way.
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextlib.contextmanager
def _seeded(seed: int | None, parameters: list[Tensor]) -> Iterator[None]:
    """Seed the generators that these parameters' devices use, and put their states back afterwards."""
    if seed is None:
        yield
        return
    seed = whole_number("seed", seed, at_least=0)
    devices = sorted({parameter.get_device() for parameter in parameters if parameter.is_cuda})
    with torch.random.fork_rng(devices, device_type="cuda"):
        # torch.manual_seed would reach every device there is, and these are the ones that are put back.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
