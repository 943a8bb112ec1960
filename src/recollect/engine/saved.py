"""What a forward pass leaves for its backward pass, all of it in PyTorch's own keeping.

Tensors that hang on a Function's ``ctx`` are seen by nobody: they outlive the backward pass as long as the loss does,
and neither checkpointing nor the hooks that move saved tensors elsewhere know of them. So everything goes through
``save_for_backward``.

That alone does not keep the numbers as they were: of a leaf of the graph PyTorch saves the very tensor, to which
``module.half()``, ``module.to(...)`` and ``weight.data = ...`` give other memory without a trace. So each leaf is also
held as it is now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]  (no stub)

from recollect.engine.memory import check_memory, is_foreign
from recollect.errors import InputError


def save(ctx: Any, tensors: Sequence[Any], others: Sequence[Any] = ()) -> None:
    """Leave tensors for the backward pass.

    Args:
        ctx: of a Function.
        tensors: what it was given, with or without derivatives; None where there is none.
        others: what has no derivatives, such as a kernel's memory.
    """
    # AccumulateGrad keeps a leaf that has a gradient alive anyway, so that to hold it costs no memory.
    leaves = []
    given: list[Any] = []
    for place, tensor in enumerate(tensors):
        if tensor is not None:
            if not tensor.requires_grad:
                tensor = tensor.detach()
            elif tensor.is_leaf:
                leaves.append((place, tensor, tensor.data))
        given.append(tensor)
    ctx.leaves, ctx.given = leaves, len(given)
    ctx.save_for_backward(*given, *others)


def saved(ctx: Any, everything: Sequence[Any]) -> tuple[list[Any], Sequence[Any]]:
    """What `save` was given: ``tensors`` with the numbers that they had then, and ``others``.

    Args:
        ctx: of the Function.
        everything: ``ctx.saved_tensors``, which a backward pass may ask for once. That raises RuntimeError where a
            tensor was changed in place, or the graph was freed.
    """
    tensors = list(everything[: ctx.given])
    for place, leaf, then in ctx.leaves:
        if tensors[place] is leaf:  # and not what a hook has made of it
            tensors[place] = then
    return tensors, everything[ctx.given :]


def differentiable(ctx: Any, everything: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """As `saved`, but the tensors are those of the graph, for a backward pass that is differentiated itself.

    Raises:
        InputError: one of them has got other memory, or has none.
    """
    for tensor in everything:
        if tensor is not None:
            check_memory("a tensor that was saved for the backward pass", tensor)  # torch would read without
    for place, leaf, then in ctx.leaves:
        now: torch.Tensor = everything[place]
        if now is leaf and (now.dtype is not then.dtype or now.data_ptr() != then.data_ptr()):
            raise InputError(
                "a tensor has got other numbers since the forward pass, which second derivatives need",
                given=f"{now.dtype} {tuple(now.shape)}, where the forward pass had {then.dtype} {tuple(then.shape)}",
                expected="the tensors of the forward pass",
                remedy="call backward before module.to(), .half() or an assignment to .data",
            )
    return everything[: ctx.given], everything[ctx.given :]


def must_be_differentiable(grads: Sequence[torch.Tensor | None]) -> bool:
    """Whether a backward pass is itself to be differentiated or batched, which kernels cannot be."""
    if torch.is_grad_enabled():
        return True
    for grad in grads:  # one may stand for something else than its numbers: many gradients at once (vmap over backward)
        if grad is not None and (_is_batched(grad) or _is_batched_otherwise(grad) or is_foreign(grad)):
            return True
    return False


_is_batched, _is_batched_otherwise = _functorch.is_batchedtensor, _functorch.is_legacy_batchedtensor
