"""L: the number whose gradient is followed back through time."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from recollect.errors import InputError
from recollect.nn import Recurrent

if TYPE_CHECKING:
    from recollect.diagnosis.runs.call import Call

_SEED = 0


def objective(model: nn.Module, output: Any, target: Any, loss: Any, call: Call, *, times_batch: bool = True) -> Tensor:
    """Compute L as a 0-d tensor, such that dL/dh of a row is that row's own gradient.

    Without a loss, outputs and targets that have the time axis are first cut to each row's last valid
    step; an explicit loss gets both whole. A mean over rows is multiplied by B.

    Args:
        model: the model that made ``output``.
        output: what its forward pass returned.
        target: what the loss compares it with, or None.
        loss: called with (output, target), or None.
        call: the recurrent layer that ran last; its B, T and lengths tell the time axis.
        times_batch: multiply a mean over rows by B; False leaves it the number that training would show.

    Raises:
        InputError: the output, the target or what the loss returns cannot be used.
    """
    if loss is not None:
        if isinstance(loss, nn.Module):
            loss = copy.deepcopy(loss).double()  # such as the class weights of nn.CrossEntropyLoss
        value = _call(loss, output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InputError(
                "the loss must return a single number",
                given=f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__,
                expected="a tensor with one element",
                remedy='reduction="mean" or "sum"',
            )
        return value.reshape(()) * (call.batch if times_batch and _is_mean(loss) else 1)
    if target is None and isinstance(model, Recurrent):
        top = _top(model, output)
        return (top @ _unit_vector(top.shape[-1:], top)).sum()
    cut = _cut(_first_tensor(output), call, classes=_holds_classes(target))
    if target is None:
        by_row = not call.unbatched and cut.dim() > 1
        return (cut * _unit_vector(cut.shape[1:] if by_row else cut.shape, cut)).sum()
    return (call.batch if times_batch else 1) * _compare(cut, target, call)


def answers(model: nn.Module, output: Any, call: Call) -> Tensor:
    """What a model says in the end, [B, n]: what L is made of where there is neither a loss nor a target.

    That is h_n of the top level for a bare layer, its directions side by side; of any other model the first tensor
    that it returns, cut to each row's last valid step if it has the time axis. Arguments as those of `objective`.

    Raises:
        InputError: the output has no rows, or does not hold floating-point numbers.
    """
    if isinstance(model, Recurrent):
        top = _top(model, output)
        return top.reshape(1, -1) if call.unbatched else top.transpose(0, 1).flatten(1)
    cut = _cut(_first_tensor(output), call, classes=False)
    if not cut.is_floating_point():
        raise InputError(
            "the output must be of floating-point numbers", given=cut.dtype, remedy="return scores, not their argmax"
        )
    if call.unbatched:
        return cut.reshape(1, -1)
    if cut.dim() < 1 or cut.shape[0] != call.batch:
        raise InputError(
            "the output does not tell the rows of the batch apart",
            given=f"shape {tuple(cut.shape)} at the last step, for a recurrent layer that ran on {call.batch} row(s)",
            expected="[B, ...]; with a time axis [B, T, ...] or [T, B, ...]",
        )
    return cut.reshape(call.batch, -1)


def _top(layer: Recurrent, output: Any) -> Tensor:
    """h_n of the top level, [directions, B, H]."""
    final = output[1] if isinstance(output[1], Tensor) else output[1][0]
    return final[-2 if layer.bidirectional else -1 :]


def _call(loss: Any, output: Any, target: Any) -> Any:
    """Give a loss the output as it is, or if it cannot take that, as torch's losses cannot, its first tensor."""
    try:
        return loss(output, target)
    except Exception:
        if isinstance(output, Tensor | PackedSequence):
            raise
        return loss(_first_tensor(output), target)


def _compare(output: Tensor, target: Any, call: Call) -> Tensor:
    """Mean squared error for a target of floating-point numbers, cross-entropy for one of classes."""
    if not isinstance(target, Tensor | PackedSequence):
        raise InputError("the target must be a tensor", given=type(target).__name__, expected="a torch.Tensor")
    if isinstance(target, PackedSequence) or not _fits(output, target):
        target = _cut(target, call, classes=False)
    if target.is_floating_point() and output.shape == (*target.shape, 1):
        target = target.unsqueeze(-1)
    if not _fits(output, target):
        raise InputError(
            "the target does not fit the output",
            given=f"{target.dtype} {tuple(target.shape)} for an output {tuple(output.shape)}",
            expected="floating-point numbers of the same shape (mean squared error), or one class for each "
            "row of scores (cross-entropy)",
            remedy="pass loss=, a function of (output, target)",
        )
    if target.is_floating_point():
        return nn.functional.mse_loss(output, target)
    return nn.functional.cross_entropy(output, target.long())


def _fits(output: Tensor, target: Tensor) -> bool:
    if target.is_floating_point():
        return target.shape == output.shape
    if target.is_complex() or target.dtype == torch.bool or output.dim() == 0:
        return False
    # Scores have the classes in their second dimension, or in their only one.
    return target.shape == (output.shape[:1] + output.shape[2:] if output.dim() > 1 else ())


def _holds_classes(target: Any) -> bool:
    """Whether there is one class per row, so that a matrix of outputs is rows and scores, not rows and steps."""
    return isinstance(target, Tensor) and not target.is_floating_point() and target.dim() <= 1


def _cut(value: Any, call: Call, *, classes: bool) -> Tensor:
    """Each row's last valid step of ``value``, if it has the time axis; 0 for a row without one.

    Time is seen by shape: [B, T, ...] or [T, B, ...], whichever the layer that ran last has first, and
    [T, ...] where that was unbatched. ``classes`` says that a matrix is rows and scores, without time.
    """
    lengths, B, T = call.lengths, call.batch, call.steps
    if isinstance(value, PackedSequence):
        value, lengths = pad_packed_sequence(value, batch_first=call.layer.batch_first)
        B, T = len(lengths), int(lengths.max())
    elif call.unbatched:
        if value.dim() <= classes or value.shape[0] != T:
            return value
        value = value.unsqueeze(0 if call.layer.batch_first else 1)
    elif value.dim() <= 1 + classes:
        return value
    layouts = {True: (B, T), False: (T, B)}
    preferred = call.layer.batch_first
    batch_first = next((each for each in (preferred, not preferred) if value.shape[:2] == layouts[each]), None)
    if batch_first is None:
        return value
    lengths = (torch.full((B,), T) if lengths is None else lengths).to(value.device)
    rows, steps = torch.arange(B, device=value.device), (lengths - 1).clamp(min=0)
    last = value[rows, steps] if batch_first else value[steps, rows]
    empty = (lengths == 0).view(-1, *[1] * (last.dim() - 1))
    last = last.masked_fill(empty, 0)
    return last[0] if call.unbatched else last


def _first_tensor(output: Any) -> Any:
    """The output proper of a model that may return more, such as (y, state)."""
    if isinstance(output, Tensor | PackedSequence):
        return output
    parts = list(output.values()) if isinstance(output, dict) else output
    if isinstance(parts, tuple | list) and parts:
        return _first_tensor(parts[0])
    raise InputError(
        "the model returned no tensor",
        given=type(output).__name__,
        expected="a tensor or PackedSequence, or a tuple, list or dict that begins with one",
        remedy="pass loss=, a function of (output, target)",
    )


def _unit_vector(shape: torch.Size, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    vector = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (vector / torch.linalg.vector_norm(vector)).to(like.device)


def _is_mean(loss: Any) -> bool:
    """Whether a loss says that it averages: by torch's ``reduction``, as attribute or default argument."""
    reduction = getattr(loss, "reduction", None)
    if reduction is None and not isinstance(loss, nn.Module):
        try:
            reduction = inspect.signature(loss).parameters["reduction"].default
        except (KeyError, TypeError, ValueError):
            return False
    return reduction in ("mean", "batchmean")
