"""Gradient clipping: between ``backward()`` and ``step()``, as a line of its own.

A recurrent network's error surface has cliffs: the gradient is multiplied by the same matrix at every
step back through time, and now and then it explodes. Rescaling all of it by one factor keeps its
direction and bounds the step (Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent
neural networks", ICML 2013).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from recollect.errors import InputError
from recollect.training._arguments import positive_limit

# Where the sum of float64 squares neither overflows nor loses digits to underflow.
_SAFE_NORMS = (1e-140, 1e150)


class Clipped(NamedTuple):
    """What :func:`clip_by_global_norm` measured and did.

    Attributes:
        norm: the Euclidean norm of all gradients together, before clipping.
        scale: the factor that every gradient was multiplied by, 1.0 when nothing was changed, 0.0 when
            the gradients were dropped.
        clipped: whether ``scale`` is below 1.
        finite: whether the gradients were finite; if not, every ``.grad`` is None now.
    """

    norm: float
    scale: float
    clipped: bool
    finite: bool


class ClippedValues(NamedTuple):
    """What :func:`clip_by_value` measured and did.

    Attributes:
        largest: the largest absolute value in any gradient, before clipping.
        clipped: whether any value was changed or dropped.
        finite: whether the gradients were finite; if not, every ``.grad`` is None now.
    """

    largest: float
    clipped: bool
    finite: bool


def clip_by_global_norm(parameters: Iterable[Tensor] | Tensor, max_norm: float) -> Clipped:
    """Rescale all gradients by one factor so that their global norm is at most ``max_norm``.

    The factor is ``scale = min(1, max_norm / norm)``, with nothing added to the denominator; at
    ``scale = 1`` no bit of a gradient changes. The norm is accumulated in float64, so neither large nor
    many float32 values spoil it. Gradients may differ in dtype and device; a tensor or a gradient given
    twice counts once, and tensors without a gradient are passed over.

    When a gradient holds inf or NaN (or float64 cannot hold the norm), every ``.grad`` becomes None: the
    optimiser's next step then changes nothing, and ``finite`` is False.

    Args:
        parameters: the tensors whose ``.grad`` is clipped in place, or a single one.
        max_norm: the limit, above 0; ``math.inf`` measures only.

    Raises:
        InputError: ``max_norm`` is not a number above 0, or a gradient is sparse or complex.

    Example:
        >>> loss.backward()  # doctest: +SKIP
        >>> clipped = clip_by_global_norm(model.parameters(), max_norm=1.0)  # doctest: +SKIP
        >>> optimizer.step()  # doctest: +SKIP
    """
    limit = positive_limit("max_norm", max_norm)
    tensors = _as_list(parameters)
    gradients = _gradients(tensors)
    norm = _global_norm(gradients)
    if not math.isfinite(norm):
        _drop_gradients(tensors)
        return Clipped(norm, 0.0, clipped=True, finite=False)
    scale = min(1.0, limit / norm) if norm > 0 else 1.0
    if scale < 1.0:
        for gradient in gradients:
            _rescale(gradient, scale)
    return Clipped(norm, scale, clipped=scale < 1.0, finite=True)


def clip_by_value(parameters: Iterable[Tensor] | Tensor, clip_value: float) -> ClippedValues:
    """Limit every gradient element to [-clip_value, clip_value].

    Each element is cut by itself, so the direction of the whole gradient changes;
    :func:`clip_by_global_norm` keeps it. Gradients that are not finite are dropped as there.

    Args:
        parameters: the tensors whose ``.grad`` is clipped in place, or a single one.
        clip_value: the limit, above 0; ``math.inf`` measures only.

    Raises:
        InputError: ``clip_value`` is not a number above 0, or a gradient is sparse or complex.
    """
    limit = positive_limit("clip_value", clip_value)
    tensors = _as_list(parameters)
    gradients = _gradients(tensors)
    largest = _largest(gradients)
    if not math.isfinite(largest):
        _drop_gradients(tensors)
        return ClippedValues(largest, clipped=True, finite=False)
    if largest > limit:
        for gradient in gradients:
            gradient.clamp_(-limit, limit)
    return ClippedValues(largest, clipped=largest > limit, finite=True)


def _as_list(parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    # A tensor is itself iterable, over its rows, which have no gradient of their own.
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _gradients(tensors: list[Tensor]) -> list[Tensor]:
    """The distinct, non-empty gradients of ``tensors``."""
    distinct = {id(t.grad): t.grad.detach() for t in tensors if t.grad is not None}
    for gradient in distinct.values():
        if gradient.layout is not torch.strided or gradient.is_complex():
            raise InputError(
                "this gradient cannot be clipped",
                given=f"a gradient of layout {gradient.layout} and dtype {gradient.dtype}",
                expected="dense, real gradients",
                remedy="build embeddings with sparse=False",
            )
    return [gradient for gradient in distinct.values() if gradient.numel()]


def _drop_gradients(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tensor.grad = None


def _global_norm(gradients: list[Tensor]) -> float:
    norm = math.hypot(*_gather(torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients))
    if _SAFE_NORMS[0] < norm < _SAFE_NORMS[1]:
        return norm
    peak = _largest(gradients)
    if peak == 0 or not math.isfinite(peak):
        return norm
    scaled = (torch.linalg.vector_norm(g.double() / peak) for g in gradients)
    return peak * math.hypot(*_gather(scaled))


def _largest(gradients: list[Tensor]) -> float:
    magnitudes = _gather(gradient.abs().amax() for gradient in gradients)
    # Python's max drops a NaN that does not come first.
    return math.nan if any(map(math.isnan, magnitudes)) else max(magnitudes, default=0.0)


def _gather(scalars: Iterable[Tensor]) -> list[float]:
    """The values of 0-d tensors as Python floats, with one transfer however many devices there are."""
    found = list(scalars)
    return torch.stack([s.to(found[0].device, torch.float64) for s in found]).tolist() if found else []


def _rescale(gradient: Tensor, scale: float) -> None:
    # PyTorch multiplies float32 and narrower by a float32 factor, which a tiny scale would lose digits in.
    if scale < torch.finfo(torch.float32).tiny:
        gradient.copy_(gradient.double() * scale)
    else:
        gradient.mul_(scale)
