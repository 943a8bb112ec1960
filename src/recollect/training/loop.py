"""The training loop, written out: every step is a line that can be read and replaced."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from recollect.errors import InputError, TrainingError
from recollect.training._arguments import positive_limit, whole_number
from recollect.training.batches import (
    Batches,
    Group,
    Reader,
    check_repeatable,
    device_of,
    length,
    moved,
    no_batches,
)
from recollect.training.checkpoint import Checkpoints, Keeper
from recollect.training.checks import (
    check_has_gradient,
    check_metrics,
    check_optimizer,
    check_scalar,
    check_scheduler,
)
from recollect.training.clip import Clipped, clip_by_global_norm
from recollect.training.culprit import Culprit, find_culprit
from recollect.training.evaluation import Loss, Metric, measure, mode
from recollect.training.generators import Generators, seeded
from recollect.training.history import Evaluation, History
from recollect.training.observers import Audience, Observer, StopTraining
from recollect.training.run import Run

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
    metrics: Mapping[str, Metric] | None = None,
    batch_dim: int | None = None,
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

    A batch is ``(x, y)``, or ``(x, lengths, y)`` for ``model(x, lengths=lengths)``, or a dict with "x", "y" and
    whatever else the model takes by name. ``y`` is a tensor, a PackedSequence or a dict of tensors. Where all
    parameters of the model are on one device, the tensors of a batch go there, also those in tuples, lists and
    dicts; ``lengths`` stay where they are, as PyTorch's packing takes them from the CPU.

    Means weigh each batch by its samples, as if all were joined. Those of a tensor ``y`` lie along its dimension
    ``batch_dim``; those of a PackedSequence are its steps. With ``batch_dim=None`` they lie along the first
    dimension, but along the second where ``y`` is known to be time-major, [T, B, ...]:

    - with ``lengths``, or a PackedSequence ``x``, of B sequences: ``y`` has B in its second dimension and not in
      its first;
    - else: ``x`` is [T, B, I], or indices [T, B], with the T and B of ``y``, and all layers of the model that have
      ``batch_first`` have it False.

    So a model that takes batch-first data and turns it around for such layers itself needs ``batch_dim=0``.

    Args:
        model: what it returns is what ``loss`` takes.
        batches: such as a DataLoader; gone through once an epoch.
        loss: ``loss(output, y)`` returns the mean over the batch as a scalar tensor.
        optimizer: holds the parameters to train: all or some of the model's, and others, as of the loss. It steps
            without a closure, which ``torch.optim.LBFGS`` does not.
        epochs: passes over ``batches``, at least 1.
        max_norm: limit on the global norm of the gradient; None measures it only.
        accumulate: batches to one step of the optimiser. Its gradient is that of these batches joined: each
            counts by its samples. At an epoch's end the step takes those that are left.
        scheduler: one of ``torch.optim.lr_scheduler``, made for ``optimizer``; ``ReduceLROnPlateau`` gets
            the validation loss.
        scheduler_per: whether ``scheduler`` steps after each "epoch" or each "step" of the optimiser.
        validation: held-out batches, looked at after every epoch.
        patience: stop after this many epochs in a row without a lower validation loss.
        metrics: measured on ``validation`` beside the loss, and written into the history: functions by name;
            ``metric(output, y)`` returns the mean over the batch as a number or a scalar tensor.
        batch_dim: the dimension of ``y`` along which samples are counted; None as said above.
        observers: told what happens; see :class:`Observer`. They may end the run (:class:`StopTraining`).
        seed: seeds PyTorch's generators (CPU and CUDA) for this run only: dropout and a DataLoader's
            shuffling repeat, and the caller's random state is untouched. None uses that state. A
            DataLoader with a generator of its own follows that one instead.
        checkpoint: a path, or :class:`Checkpoints`, which can also write within an epoch. The first Ctrl-C
            then ends the run after the step (or validation) under way, with a checkpoint; a second one ends
            it at once.

    Returns:
        The :class:`History` of the run.

    Raises:
        InputError: an argument that cannot be used; a batch in another form; a loss or metric that is not one
            number.
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
    if metrics and validation is None:
        raise InputError("metrics are measured on validation data", remedy="pass validation=")
    check_metrics(metrics)
    check_optimizer(optimizer, model)
    check_scheduler(scheduler, scheduler_per, optimizer, has_validation=validation is not None)
    check_repeatable("batches", batches, epochs)
    check_repeatable("validation", validation, epochs)
    # The optimiser's parameters, not the model's: a frozen part would add to the norm and is never zeroed.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    batches_in_epoch = length(batches)
    read, device, audience = Reader(model, batch_dim), device_of(model), Audience(observers)

    with seeded(seed, parameters), mode(model, training=True), contextlib.ExitStack() as at_end:
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
            metrics=sorted(metrics) if metrics else None,
            batch_dim=batch_dim,
        )
        at_end.callback(audience.end, run.history)
        at_end.callback(run.restore_best)
        at_end.enter_context(keeper)
        at_end.enter_context(_until_stopped(run, keeper))
        audience.begin(epochs, None if batches_in_epoch is None else -(-batches_in_epoch // accumulate))
        if resumed:
            audience.tell("on_resume", run.epoch, run.step, run.history)
        while run.epoch < epochs and not run.history.is_over(patience):
            for step, group in run.rest_of_epoch(read(batches), accumulate):
                # A step that is skipped may be made again from here, to find out where it goes wrong.
                before = None
                if run.skips_in_a_row >= _MOST_SKIPS_IN_A_ROW - 1:
                    before = generators.state()
                elif audience.hears_of_skips:
                    before = generators.state_of_torch()
                optimizer.zero_grad()
                mean = 0.0
                for batch in moved(group, device):
                    value = check_scalar("loss", loss(model(batch.x, **batch.kwargs), batch.y))
                    mean += value.item() * group.share(batch)
                    if not math.isfinite(mean):
                        break
                    check_has_gradient(value)
                    (value * group.share(batch)).backward()
                clipped = clip_by_global_norm(parameters, limit) if math.isfinite(mean) else _NO_GRADIENT
                if clipped.finite:
                    optimizer.step()
                    if scheduler is not None and scheduler_per == "step":
                        scheduler.step()
                run.end_step(mean, group.samples, clipped)

                audience.tell("on_step", step, mean, clipped)
                if before is not None and not clipped.finite:
                    look = _look_again(model, group, loss, generators, before)
                    audience.tell("on_skip", step, look)
                    if run.skips_in_a_row >= _MOST_SKIPS_IN_A_ROW:
                        raise _lost(run.epoch, step, look())
                keeper.after_step()
            if not run.step:
                raise no_batches()

            measured = None if validation is None else measure(model, read(validation), loss, metrics or {})
            learning_rate = float(optimizer.param_groups[0]["lr"])
            if scheduler is not None and scheduler_per == "epoch":
                _step_after_epoch(scheduler, measured)
            run.end_epoch(measured, learning_rate)
            audience.tell("on_epoch", run.epoch - 1, run.history)
            keeper.after_epoch()
    return run.history


def _step_after_epoch(scheduler: LRScheduler, measured: Evaluation | None) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        assert measured is not None, "check_scheduler refuses it without validation"
        scheduler.step(measured.loss)
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
def _until_stopped(run: Run, keeper: Keeper) -> Iterator[None]:
    """An observer that ends the run ends it as the last epoch does."""
    try:
        yield
    except StopTraining as stop:
        run.history.stopped = stop.reason
        keeper.after_stop()
