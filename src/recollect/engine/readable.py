"""The one gate to the kernels: a tensor becomes an address here, or not at all.

A kernel trusts the addresses that it is given. So all that it reads passes `readable`, on the way forward and, since
tensors may have changed in between, again on the way back: it has the shape and the type that the kernel expects and
memory that is large enough, laid out as the kernel goes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from recollect.engine.llvm.problem import Problem
from recollect.engine.memory import ORDINARY, check_memory, is_foreign
from recollect.engine.reference import PLAIN, Extras
from recollect.errors import InputError

Shape = tuple[int, ...]

TYPES = {"float32": torch.float32, "float64": torch.float64}  # that kernels compute in, by their names

_STRIDED = torch.strided
# A part of a tensor without memory seems to begin at its offset. No system that we know puts memory so low; where one
# does, tensors are only looked at more closely.
_LOWEST = 1 << 32


def addresses(tensors: Sequence[Any], shapes: Sequence[Shape], dtype: torch.dtype) -> list[int] | None:
    """Where the numbers of each tensor begin, if a kernel can read all of them as they are; else None.

    Args:
        tensors: to be read.
        shapes: of each.
        dtype: of all.
    """
    found = []
    try:
        for tensor, shape in zip(tensors, shapes, strict=True):
            if tensor.shape != shape or tensor.dtype is not dtype or not tensor.is_cpu:
                return None
            if (type(tensor) not in ORDINARY and is_foreign(tensor)) or not tensor.is_contiguous() or tensor.is_neg():
                return None
            if tensor.untyped_storage().nbytes() < tensor.nbytes + tensor.storage_offset() * dtype.itemsize:
                return None
            found.append(tensor.data_ptr())
    except RuntimeError:  # no strides, or no address: a sparse tensor, or one in a layout of oneDNN's
        return None
    return found if min(found, default=_LOWEST) >= _LOWEST else None


def readable(tensors: Sequence[Any], shapes: Sequence[Shape], dtype: torch.dtype, names: Sequence[str]) -> list[Any]:
    """The tensors with their numbers in memory as a kernel reads them; None stays None.

    Args:
        tensors: each None or to be read.
        shapes, names: of each; the names are for the error.
        dtype: of all.

    Raises:
        InputError: one has another shape, dtype or device, its class is not known to keep numbers in memory, or it has
            no memory.
    """
    found = list(tensors)
    for place, tensor in enumerate(found):
        if tensor is None:
            continue
        foreign = type(tensor) not in ORDINARY and is_foreign(tensor)
        if tensor.shape != shapes[place] or tensor.dtype is not dtype or not tensor.is_cpu or foreign:
            raise _misfit(names[place], tensor, shapes[place], dtype)
        # Almost every tensor, said briefly; what differs from it is looked at more closely.
        if (
            tensor.layout is not _STRIDED
            or not tensor.is_contiguous()
            or tensor.is_neg()
            or tensor.data_ptr() < _LOWEST
            or tensor.untyped_storage().nbytes() < tensor.nbytes + tensor.storage_offset() * dtype.itemsize
        ):
            found[place] = _dense(names[place], tensor)
    return found


def _dense(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor._is_zerotensor():  # torch's own for zeros that are nowhere in memory, which derivatives can be
        tensor = tensor.clone()
    check_memory(name, tensor)
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.contiguous().resolve_neg()


def _misfit(name: str, tensor: torch.Tensor, shape: Shape, dtype: torch.dtype) -> InputError:
    kind = f", a {type(tensor).__name__}" if is_foreign(tensor) else ""
    return InputError(
        f"{name} does not fit the layer and its input",
        given=f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}{kind}",
        expected=f"{shape}, {dtype} on cpu",
    )


# Of a layer in one direction --------------------------------------------------------------------


def read_input(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    """The input of a layer as its kernels read it; InputError if it is not what they expect."""
    shape = (*problem.rows.shape, problem.inputs)
    return readable([x], [shape], TYPES[problem.tiling.dtype], ["the input"])[0]


def read_own(problem: Problem, own: Sequence[Any]) -> list[Any]:
    """The four parameters, the initial states and the vectors of a direction as its kernels read them; else InputError.

    Args:
        problem: of the direction.
        own: None where there is none.
    """
    plan = problem.plan
    shapes = own_shapes(
        problem.gates, problem.inputs, problem.hidden, problem.batch, len(plan.own_states), len(plan.vectors)
    )
    return readable(own, shapes, TYPES[problem.tiling.dtype], _names(plan.own_states, plan.vectors))


def read_gradients(problem: Problem, grads: Sequence[Any]) -> list[Any]:
    """The gradients of the outputs and of the final states of a direction as its kernels read them; else InputError."""
    states = problem.plan.own_states
    shapes, names = _of_gradients(problem.rows.shape, problem.batch, problem.hidden, len(grads) - len(states), states)
    return readable(grads, shapes, TYPES[problem.tiling.dtype], names)


def read_extras(problem: Problem, extras: Extras) -> Extras:
    """What a call adds to a direction as its kernels read it; InputError if it is not what they expect."""
    if extras is PLAIN:
        return extras
    rows, hidden, dtype = problem.rows.shape, problem.hidden, TYPES[problem.tiling.dtype]
    (resets,) = readable([extras.resets], [rows], torch.bool, ["resets"])
    (mask,) = readable([extras.feed_mask], [(problem.batch, hidden)], dtype, ["feed_mask"])
    shapes = [(hidden,) if keep.dim() == 1 else (*rows, hidden) for keep in extras.keep]
    return extras._replace(
        resets=resets, feed_mask=mask, keep=readable(extras.keep, shapes, dtype, ["keep"] * len(shapes))
    )


@lru_cache(maxsize=128)
def own_shapes(gates: int, inputs: int, hidden: int, batch: int, states: int, vectors: int) -> list[Shape]:
    """Of the four parameters, the initial states and the vectors, where G * H is ``gates``."""
    of_parameters = [(gates, inputs), (gates, hidden), (gates,), (gates,)]
    return [*of_parameters, *[(1, batch, hidden)] * states, *[(hidden,)] * vectors]


@lru_cache(maxsize=128)
def _of_gradients(
    rows: Shape, batch: int, hidden: int, outputs: int, states: tuple[str, ...]
) -> tuple[list[Shape], list[str]]:
    """The shapes and names of the gradients of so many outputs and of the final states."""
    shapes = [*[(*rows, hidden)] * outputs, *[(1, batch, hidden)] * len(states)]
    return shapes, ["the gradient of an output"] * outputs + [f"the gradient of final {name}" for name in states]


@lru_cache(maxsize=128)
def _names(states: tuple[str, ...], vectors: tuple[str, ...]) -> list[str]:
    return ["weight_ih", "weight_hh", "bias_ih", "bias_hh", *states, *vectors]
