"""The training loop, written out: every step is a line that can be read and replaced."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from recollect.errors import InputError, TrainingError
from recollect.training._arguments import positive_limit, whole_number
from recollect.training.batches import Batches, Group, check_repeatable, length, no_batches, samples
from recollect.training.checkpoint import Checkpoints, Keeper
from recollect.training.clip import Clipped, clip_by_global_norm
from recollect.training.culprit import Culprit, find_culprit
from recollect.training.generators import Generators, seeded
from recollect.training.history import History
from recollect.training.observers import Observer
from recollect.training.run import Run

Loss = Callable[[Any, Tensor], Tensor]

# A bad batch now and then is skipped; this many in a row are no accident.
_MOST_SKIPS_IN_A_ROW = 5
_NO_GRADIENT = Clipped(math.nan, 0.0, clipped=True, finite=False)


def train(
    model: nn.Module,
    batches: Batches,
    *,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    max_norm: float | None = None,
    accumulate: int = 1,
    scheduler: LRScheduler | None = None,
    scheduler_per: Literal["epoch", "step"] = "epoch",
    validation: Batches | None = None,
    patience: int | None = None,
    observers: Sequence[Observer] = (),
    seed: int | None = None,
    checkpoint: Checkpoints | str | os.PathLike[str] | None = None,
) -> History:
    """Train ``model`` on ``batches`` until it has gone through them ``epochs`` times.

    With ``validation``, the model ends with the weights (and buffers) of the epoch that had the lowest
    validation loss, however the loop ends: also after an error or Ctrl-C, which are raised again. The
    train and eval modes of the model's parts are put back as they were.

    A step whose loss or gradient is not finite is skipped: no update, nothing from ``scheduler``. Five in a
    row end the run, and the error names the layer, time step and row where the numbers went bad.

    With ``checkpoint``, a run that was killed goes on when the same call is made again, and reaches the
    same weights, bit for bit, as one that was not: with the same number of threads, and a ``seed`` or a
    random state set before. What is kept is the ``state_dict`` of model, optimiser and scheduler, the best
    weights, the history, and the random state of PyTorch, Python, NumPy and the DataLoader. After a kill
    within an epoch the data is drawn again up to that step, so ``batches`` must depend on nothing but these
    (a DataLoader does; its ``persistent_workers`` keep random states of their own). ``epochs`` and
    ``patience`` may differ from the first call's. Where nothing is left to do, the history is returned at
    once. Delete the file to begin anew.

    Args:
        model: called as ``model(x)``; what it returns is what ``loss`` takes.
        batches: pairs ``(x, y)``, such as a DataLoader; gone through once an epoch. Samples are counted
            along the first dimension of ``y``.
        loss: ``loss(model(x), y)`` returns the mean over the batch as a scalar tensor.
        optimizer: holds the parameters to train; steps without a closure.
        epochs: passes over ``batches``, at least 1.
        max_norm: limit on the global norm of the gradient; None measures it only.
        accumulate: batches to one step of the optimiser. Its gradient is that of these batches joined: each
            counts by its samples. At an epoch's end the step takes those that are left.
        scheduler: one of ``torch.optim.lr_scheduler``, made for ``optimizer``; ``ReduceLROnPlateau`` gets
            the validation loss.
        scheduler_per: whether ``scheduler`` steps after each "epoch" or each "step" of the optimiser.
        validation: held-out pairs ``(x, y)``, looked at after every epoch.
        patience: stop after this many epochs in a row without a lower validation loss.
        observers: told what happens; see :class:`Observer`.
        seed: seeds PyTorch's generators (CPU and CUDA) for this run only: dropout and a DataLoader's
            shuffling repeat, and the caller's random state is untouched. None uses that state. A
            DataLoader with a generator of its own follows that one instead.
        checkpoint: a path, or :class:`Checkpoints`, which can also write within an epoch. The first Ctrl-C
            then ends the run after the step (or validation) under way, with a checkpoint; a second one ends
            it at once.

    Returns:
        The :class:`History` of the run.

    Raises:
        InputError: an argument that cannot be used.
        TrainingError: no batches; losses or gradients that are not finite in 5 steps in a row; a
            checkpoint that is damaged, foreign or of another run (nothing is changed then); or a state that
            a checkpoint cannot hold, such as an optimiser's that is not tensors and plain values.
    """
    epochs = whole_number("epochs", epochs, at_least=1)
    accumulate = whole_number("accumulate", accumulate, at_least=1)
    limit = math.inf if max_norm is None else positive_limit("max_norm", max_norm)
    if patience is not None:
        patience = whole_number("patience", patience, at_least=1)
        if validation is None:
            raise InputError("patience needs a validation loss to watch", remedy="pass validation=")
    _check_scheduler(scheduler, scheduler_per, optimizer, validation)
    check_repeatable("batches", batches, epochs)
    check_repeatable("validation", validation, epochs)
    # The optimiser's parameters, not the model's: a frozen part would add to the norm and is never zeroed.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    batches_in_epoch = length(batches)
    told_of_skips = any(type(observer).on_skip is not Observer.on_skip for observer in observers)

    with seeded(seed, parameters), _mode(model, training=True), contextlib.ExitStack() as at_end:
        generators = Generators(parameters, batches=batches, validation=validation)
        run = Run(model, optimizer, scheduler, generators)
        keeper = Keeper(_as_checkpoints(checkpoint), run)
        resumed = keeper.resume(
            seed=seed,
            max_norm=max_norm,
            accumulate=accumulate,
            scheduler_per=scheduler_per,
            batches_in_an_epoch=batches_in_epoch,
            validation=validation is not None,
        )
        for observer in observers:
            observer.on_train_begin(epochs, None if batches_in_epoch is None else -(-batches_in_epoch // accumulate))
            at_end.callback(observer.on_train_end, run.history)
            if resumed:
                observer.on_resume(run.epoch, run.step, run.history)
        at_end.callback(run.restore_best)
        at_end.enter_context(keeper)
        while run.epoch < epochs and not run.history.is_out_of_patience(patience):
            for step, group in run.rest_of_epoch(batches, accumulate):
                # A step that is skipped may be made again from here, to find out where it goes wrong.
                before = None
                if run.skips_in_a_row >= _MOST_SKIPS_IN_A_ROW - 1:
                    before = generators.state()
                elif told_of_skips:
                    before = generators.state_of_torch()
                optimizer.zero_grad()
                mean = 0.0
                for x, y in group:
                    value = loss(model(x), y)
                    _check_scalar(value)
                    mean += value.item() * group.share(y)
                    if not math.isfinite(mean):
                        break
                    (value * group.share(y)).backward()
                clipped = clip_by_global_norm(parameters, limit) if math.isfinite(mean) else _NO_GRADIENT
                if clipped.finite:
                    optimizer.step()
                    if scheduler is not None and scheduler_per == "step":
                        scheduler.step()
                run.end_step(mean, group.samples, clipped)

                for observer in observers:
                    observer.on_step(step, mean, clipped)
                if before is not None and not clipped.finite:
                    look = _look_again(model, group, loss, generators, before)
                    for observer in observers:
                        observer.on_skip(step, look)
                    if run.skips_in_a_row >= _MOST_SKIPS_IN_A_ROW:
                        raise _lost(run.epoch, step, look())
                keeper.after_step()
            if not run.step:
                raise no_batches()

            validation_loss = None if validation is None else evaluate(model, validation, loss)
            learning_rate = float(optimizer.param_groups[0]["lr"])
            if scheduler is not None and scheduler_per == "epoch":
                _step_after_epoch(scheduler, validation_loss)
            run.end_epoch(validation_loss, learning_rate)
            for observer in observers:
                observer.on_epoch(run.epoch - 1, run.history)
            keeper.after_epoch()
    return run.history


def evaluate(model: nn.Module, batches: Batches, loss: Loss) -> float:
    """The mean of ``loss`` over all samples, in eval mode and without gradients.

    Args:
        model: called as ``model(x)``; its modes are put back afterwards.
        batches: pairs ``(x, y)``; samples are counted along the first dimension of ``y``.
        loss: ``loss(model(x), y)`` returns the mean over the batch as a scalar tensor.

    Raises:
        TrainingError: no batches, or the mean is not finite.
    """
    total, count = 0.0, 0
    with _mode(model, training=False), torch.inference_mode():
        for x, y in batches:
            total += loss(model(x), y).item() * samples(y)
            count += samples(y)
    if not count:
        raise no_batches()
    if not math.isfinite(total):
        raise TrainingError(
            "the validation loss is not finite",
            given=f"{total / count} over {count} samples",
            remedy="look for NaN in the validation data, or lower the learning rate",
        )
    return total / count


def _check_scalar(value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError("loss must return one number", given=given, expected="a scalar tensor")


def _check_scheduler(scheduler: object, per: str, optimizer: torch.optim.Optimizer, validation: Batches | None) -> None:
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
    if isinstance(scheduler, ReduceLROnPlateau) and (validation is None or per != "epoch"):
        raise InputError(
            "ReduceLROnPlateau follows the validation loss, which is measured once an epoch",
            given=f"validation={'None' if validation is None else '...'}, scheduler_per={per!r}",
            remedy="pass validation=, and leave scheduler_per out",
        )


def _step_after_epoch(scheduler: LRScheduler, validation_loss: float | None) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        assert validation_loss is not None, "_check_scheduler refuses it without validation"
        scheduler.step(validation_loss)
    else:
        scheduler.step()


def _as_checkpoints(checkpoint: Checkpoints | str | os.PathLike[str] | None) -> Checkpoints | None:
    if checkpoint is None or isinstance(checkpoint, Checkpoints):
        return checkpoint
    return Checkpoints(checkpoint)


def _look_again(
    model: nn.Module, group: Group, loss: Loss, generators: Generators, before: dict[str, Any]
) -> Callable[[], Culprit]:
    """Who calls it is told what went wrong in a step, which is made again from the random state ``before`` it."""

    @functools.cache
    def look() -> Culprit:
        now = generators.state()
        generators.restore(before)
        try:
            return find_culprit(model, group, loss)
        finally:
            generators.restore(now)

    return look


def _lost(epoch: int, step: int, culprit: Culprit) -> TrainingError:
    return TrainingError(
        f"the loss or its gradient was not finite in {_MOST_SKIPS_IN_A_ROW} steps in a row",
        given=f"{culprit}; the last of them was epoch {epoch + 1}, step {step + 1}",
        remedy=culprit.remedy,
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
