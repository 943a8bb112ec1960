"""The one gate to the kernels: a tensor becomes an address here, or not at all.

A kernel trusts the addresses that it is given. So all that it reads passes `readable`, on the way forward and, since
tensors may have changed in between, again on the way back: it has the shape and the type that the kernel expects and
memory that is large enough, laid out as the kernel goes through it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from recollect.engine.llvm.problem import Problem
from recollect.engine.memory import address, check_memory, is_foreign, is_plain
from recollect.engine.reference import PLAIN, Extras
from recollect.errors import InputError

Shape = tuple[int, ...]

TYPES = {"float32": torch.float32, "float64": torch.float64}  # that kernels compute in, by their names

try:  # torch's own, and not public: where it is missing, tensors are looked at one by one
    from torch._C._dynamo.guards import TensorGuards as _TensorGuards
except ImportError:
    _TensorGuards = None

_STRIDED = torch.strided


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
            if is_foreign(tensor) or not tensor.is_contiguous() or tensor.is_neg():
                return None
            found.append(address(tensor, tensor.nbytes))
    except RuntimeError:  # no strides, or no address: a sparse tensor, or one in a layout of oneDNN's
        return None
    return None if 0 in found else found


class Gate:
    """`addresses` for calls of one kind, one after the other.

    What was found of some tensors is true of all others that equal them in class, dtype, device, layout, shape and
    strides. torch.compile's guards compare that for all of a call's tensors at once, in the time that Python takes to
    look at one or two; then only their memory is left to be looked at.

    Args:
        shapes, dtype: as for `addresses`.
    """

    _MOST = 100  # guards that are made; calls that differ that often are looked at one by one

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype) -> None:
        self._shapes, self._dtype = shapes, dtype
        self._nbytes = [math.prod(shape) * dtype.itemsize for shape in shapes]
        # By whether inference mode is on, which guards look at, too.
        self._guards: dict[bool, Any] = {}
        self._made = 0 if _TensorGuards else self._MOST

    def addresses(self, tensors: Sequence[torch.Tensor]) -> list[int] | None:
        """Where the numbers of each tensor begin, if a kernel can read all of them as they are; else None."""
        guard = self._guards.get(torch.is_inference_mode_enabled())
        if guard is None or not guard.check(*tensors):
            found = addresses(tensors, self._shapes, self._dtype)
            if found is not None and self._made < self._MOST and all(map(is_plain, tensors)):
                self._remember(tensors)
            return found
        found = []
        for tensor, nbytes in zip(tensors, self._nbytes, strict=True):
            whole = not tensor.storage_offset() and tensor.untyped_storage().nbytes() >= nbytes  # as most are
            found.append(tensor.data_ptr() if whole else address(tensor, nbytes))
        return None if 0 in found else found

    def _remember(self, tensors: Sequence[torch.Tensor]) -> None:
        self._made += 1
        sizes: Any = [[*each.shape] for each in tensors]
        strides: Any = [[*each.stride()] for each in tensors]
        guard = _TensorGuards(  # pyright: ignore[reportOptionalCall]  (none are made then)
            *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
        )
        self._guards[torch.is_inference_mode_enabled()] = guard


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
        if tensor.shape != shapes[place] or tensor.dtype is not dtype or not tensor.is_cpu or is_foreign(tensor):
            raise _misfit(names[place], tensor, shapes[place], dtype)
        # Almost every tensor, said briefly; what differs from it is looked at more closely.
        if (
            tensor.layout is not _STRIDED
            or not tensor.is_contiguous()
            or tensor.is_neg()
            or not address(tensor, tensor.nbytes)
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
    shapes = _of_own(
        problem.gates, problem.inputs, problem.hidden, problem.batch, len(plan.own_states), len(plan.vectors)
    )
    return readable(own, shapes, TYPES[problem.tiling.dtype], _names(plan.own_states, plan.vectors))


def read_kept(problem: Problem, memory: torch.Tensor) -> torch.Tensor:
    """The memory that the forward pass of a direction left as the kernel reads it; InputError if it is another's."""
    names = ["the memory that was kept for the backward pass"]
    # Whoever keeps it without knowing the lengths of the rows has more.
    return readable([memory], [(max(memory.numel(), problem.kept.total),)], TYPES[problem.tiling.dtype], names)[0]


def read_gradients(problem: Problem, grads: Sequence[Any]) -> list[Any]:
    """The gradients of the outputs and of the final states of a direction as its kernels read them; else InputError."""
    states = problem.plan.own_states
    shapes, names = _of_gradients(problem.rows.shape, problem.batch, problem.hidden, len(grads) - len(states), states)
    return readable(grads, shapes, TYPES[problem.tiling.dtype], names)


def read_extras(problem: Problem, extras: Extras) -> Extras:
    """The additions of a call to a direction as its kernels read them; InputError if they are not what they expect."""
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
def _of_own(gates: int, inputs: int, hidden: int, batch: int, states: int, vectors: int) -> list[Shape]:
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
