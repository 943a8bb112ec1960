"""The llvm backend in PyTorch: one layer in one direction as an autograd Function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C import _functorch, _len_torch_dispatch_stack  # pyright: ignore[reportAttributeAccessIssue]  (no stub)
from torch.autograd import forward_ad

from recollect.cells.cell import Cell
from recollect.engine import reference
from recollect.engine.buffers import Buffer
from recollect.engine.llvm.kernels import kernels_for
from recollect.engine.llvm.machine import host
from recollect.engine.llvm.problem import Problem, dense_problem
from recollect.engine.llvm.team import team
from recollect.engine.reference import Weights
from recollect.errors import InputError

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}

# Below this many multiply-adds a second thread costs more than it brings.
_ALONE = 1 << 22


def obstacle(x: torch.Tensor) -> str | None:
    """Why llvm cannot serve rows like ``x``, or None where it can."""
    if x.device.type != "cpu":
        return f"a tensor on {x.device}"
    if x.dtype not in _DTYPES:
        return str(x.dtype)
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return "a call that is being traced"
    if _functorch.peek_interpreter_stack() is not None:
        return "a call inside a torch.func transform"
    if _len_torch_dispatch_stack():
        return "a call under a torch dispatch mode"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if type(x) is not torch.Tensor and type(x) is not torch.nn.Parameter:
        return f"a {type(x).__name__}"
    return None


def description(x: torch.Tensor) -> str:
    """How llvm serves rows like ``x``, and why not the others."""
    machine, threads = host(), torch.get_num_threads()
    why_single = team().why_single
    using = f"one thread ({why_single})" if why_single else f"up to {threads} thread(s)"
    return (
        f"kernels for {machine.cpu}, {machine.lanes(_DTYPES[x.dtype])} lanes of {_DTYPES[x.dtype]}, {using}; "
        "reference is slower; torch and triton are not built yet"
    )


def run(
    cell: Cell,
    x: torch.Tensor,
    batch_sizes: Sequence[int],
    states: Sequence[torch.Tensor],
    weights: Weights,
    *,
    reverse: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Run one layer in one direction; arguments and returns as `reference.run`."""
    tensors = (x, *weights[:4], *states, *weights.vectors)
    _check(cell, tensors, states[0].shape[1])
    if not batch_sizes:  # every row has length 0: nothing to do, and nothing that a kernel could be given
        return reference.run(cell, x, batch_sizes, states, weights, reverse=reverse)
    problem = _problem(cell, x, batch_sizes, states[0], reverse)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors):
        y, *final = _Layer.apply(cell, batch_sizes, reverse, problem, *tensors)  # pyright: ignore[reportGeneralTypeIssues]
        return y, tuple(final)
    y, final, _ = _forward(problem, tensors, save=False)
    return y, tuple(final)


def _problem(cell: Cell, x: torch.Tensor, batch_sizes: Sequence[int], state: torch.Tensor, reverse: bool) -> Problem:
    kernels = kernels_for(cell.graph, cell.gates, cell.states, cell.vectors, _DTYPES[x.dtype])
    rows, inputs = x.shape
    batch, hidden = state.shape
    workers = team()
    work = rows * len(cell.gates) * hidden * (inputs + hidden)
    threads = 1 if work < _ALONE else max(1, workers.size(min(torch.get_num_threads(), batch // 4)))
    if batch_sizes[0] == batch_sizes[-1] == batch:  # sizes never grow: all are equal
        return dense_problem(kernels, inputs, hidden, batch, len(batch_sizes), reverse, threads, workers)
    return Problem(kernels, inputs, hidden, batch, batch_sizes, reverse, threads, workers)


class _Layer(torch.autograd.Function):
    """Derivatives of `run`; double backward goes through the reference."""

    @staticmethod
    def forward(
        ctx: Any, cell: Cell, batch_sizes: Sequence[int], reverse: bool, problem: Problem, *tensors: Any
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.cell, ctx.batch_sizes, ctx.reverse, ctx.problem = cell, batch_sizes, reverse, problem
        y, final, ctx.memory = _forward(problem, tensors, save=True)
        return (y, *final)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        if torch.is_grad_enabled() or any(map(_is_batched, grads)):
            found = _differentiable_backward(ctx, grads)
        else:
            found = _backward(ctx.problem, ctx.memory, ctx.saved_tensors, ctx.needs_input_grad[4:], grads)
        return (None, None, None, None, *found)


def _is_batched(grad: torch.Tensor | None) -> bool:
    """Whether it stands for many gradients at once (vmap over backward): it has no memory for a kernel to read."""
    return grad is not None and (_functorch.is_batchedtensor(grad) or _functorch.is_legacy_batchedtensor(grad))


def _differentiable_backward(ctx: Any, grads: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The backward pass in PyTorch's own operations, which can be differentiated and batched."""
    tensors, create_graph = ctx.saved_tensors, torch.is_grad_enabled()
    x, weight_ih, weight_hh, bias_ih, bias_hh, *rest = tensors
    states, vectors = rest[: len(ctx.cell.states)], rest[len(ctx.cell.states) :]
    weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh, vectors)
    with torch.enable_grad():
        y, final = reference.run(ctx.cell, x, ctx.batch_sizes, states, weights, reverse=ctx.reverse)
    pairs = [
        (out, grad) for out, grad in zip((y, *final), grads, strict=True) if grad is not None and out.requires_grad
    ]
    wanted = [place for place, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
    found = torch.autograd.grad(
        [out for out, _ in pairs],
        [tensors[place] for place in wanted],
        [grad for _, grad in pairs],
        create_graph=create_graph,
        allow_unused=True,
    )
    result: list[torch.Tensor | None] = [None] * len(tensors)
    for place, grad in zip(wanted, found, strict=True):
        result[place] = grad
    return result


def _readable(tensors: Sequence[Any]) -> list[Any]:
    """The tensors with their numbers in memory as a kernel reads them; None stays None."""
    return [None if each is None else each.contiguous().resolve_neg() for each in tensors]


def _check(cell: Cell, tensors: Sequence[Any], hidden: int) -> None:
    """Refuse tensors whose memory is not what the kernel will read.

    Raises:
        InputError: a parameter has another shape, dtype or device than the layer needs.
    """
    x, batch = tensors[0], tensors[5].shape[0]
    gates = len(cell.gates) * hidden
    wanted = [(gates, x.shape[1]), (gates, hidden), (gates,), (gates,)]
    wanted += [(batch, hidden)] * len(cell.states) + [(hidden,)] * len(cell.vectors)
    for place, (tensor, shape) in enumerate(zip(tensors[1:], wanted, strict=True)):
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != x.dtype or tensor.device != x.device:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *cell.states, *cell.vectors)
            raise InputError(
                f"{names[place]} does not fit the layer and its input",
                given=f"{tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}",
                expected=f"{shape}, {x.dtype} on {x.device}",
            )


def _forward(
    problem: Problem, tensors: Sequence[Any], *, save: bool
) -> tuple[torch.Tensor, list[torch.Tensor], Buffer]:
    """Run the forward kernel: y, the final states, and the memory that holds what `_backward` reads."""
    x, weight_ih, weight_hh, bias_ih, bias_hh, *rest = _readable(tensors)
    count, hidden = len(problem.plan.states), problem.hidden
    y = x.new_empty(problem.rows, hidden)
    final = [x.new_empty(problem.batch, problem.width) for _ in range(count)]
    kernel = problem.train if save else problem.infer
    memory = Buffer(x.dtype, kernel.parts)
    kernel.run(
        x.data_ptr(),
        y.data_ptr(),
        weight_ih.data_ptr(),
        weight_hh.data_ptr(),
        0 if bias_ih is None else bias_ih.data_ptr(),
        0 if bias_hh is None else bias_hh.data_ptr(),
        *memory.addresses,
        *[each.data_ptr() for each in rest[:count]],
        *[each.data_ptr() for each in final],
        *[each.data_ptr() for each in rest[count:]],
    )
    if problem.width != hidden:
        final = [each[:, :hidden].contiguous() for each in final]
    if problem.begun < problem.batch:  # rows of length 0
        for each, start in zip(final, rest, strict=False):
            each[problem.begun :] = start[problem.begun :]
    return y, final, memory


def _backward(
    problem: Problem,
    memory: Buffer,
    tensors: Sequence[Any],
    needed: Sequence[bool],
    grads: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """Gradients of ``tensors`` (None where not needed) from those of y and the final states."""
    x, weight_ih, weight_hh, _, _, *rest = _readable(tensors)
    plan, hidden, gates = problem.plan, problem.hidden, problem.gates
    count = len(plan.states)
    dy, *dfinal = grads
    dstates = [x.new_zeros(problem.batch, problem.grad_width) for _ in range(count)]
    for into, grad in zip(dstates, dfinal, strict=True):
        if grad is not None:
            into[:, :hidden] = grad
    sums = x.new_zeros(problem.sums)
    dx = torch.empty_like(x) if needed[0] else None
    dw_ih, dw_hh = (torch.zeros_like(w) if needed[1] or needed[2] else None for w in (weight_ih, weight_hh))
    kernel = problem.backward_without_dy if dy is None else problem.backward
    dy = x.new_zeros(hidden) if dy is None else _readable([dy])[0]
    scratch = Buffer(x.dtype, kernel.parts)
    kernel.run(
        x.data_ptr(),
        0 if dx is None else dx.data_ptr(),
        dy.data_ptr(),
        weight_ih.data_ptr(),
        weight_hh.data_ptr(),
        0 if dw_ih is None else dw_ih.data_ptr(),
        0 if dw_hh is None else dw_hh.data_ptr(),
        sums.data_ptr(),
        *memory.addresses[3:],
        *[each.data_ptr() for each in dstates],
        *[each.data_ptr() for each in rest[count:]],
        *scratch.addresses,
    )
    dbias_ih = sums[:gates]
    dbias_hh = sums[gates : 2 * gates] if plan.split else dbias_ih
    dvectors = sums[problem.columns - len(plan.vectors) * hidden : problem.columns]
    found = [
        dx,
        dw_ih,
        dw_hh,
        dbias_ih,
        dbias_hh,
        *[each[:, :hidden] for each in dstates],
        *(dvectors.split(hidden) if plan.vectors else ()),
    ]
    return [grad if wanted else None for grad, wanted in zip(found, needed, strict=True)]
