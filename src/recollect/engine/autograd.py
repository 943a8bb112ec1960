"""The llvm backend in PyTorch: one layer in one direction as an autograd Function."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch._C import _functorch, _len_torch_dispatch_stack  # pyright: ignore[reportAttributeAccessIssue]  (no stub)
from torch.autograd import forward_ad

from recollect.cells.cell import Cell
from recollect.engine import reference
from recollect.engine.buffers import Buffer
from recollect.engine.llvm import backward
from recollect.engine.llvm.kernel import round_up
from recollect.engine.llvm.kernels import kernels_for
from recollect.engine.llvm.machine import host
from recollect.engine.llvm.team import team
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
    weight_ih: torch.Tensor,
    weight_hh: torch.Tensor,
    bias_ih: torch.Tensor | None,
    bias_hh: torch.Tensor | None,
    vectors: Sequence[torch.Tensor],
    *,
    reverse: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Run one layer in one direction; arguments and returns as `reference.run`."""
    tensors = (x, weight_ih, weight_hh, bias_ih, bias_hh, *states, *vectors)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors):
        y, *final = _Layer.apply(cell, batch_sizes, reverse, *tensors)  # pyright: ignore[reportGeneralTypeIssues]
        return y, tuple(final)
    call = _Call(cell, batch_sizes, reverse, tensors)
    return call.forward(save=False)


class _Layer(torch.autograd.Function):
    """Derivatives of `run`; double backward goes through the reference."""

    @staticmethod
    def forward(ctx: Any, cell: Cell, batch_sizes: Sequence[int], reverse: bool, *tensors: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.call = _Call(cell, batch_sizes, reverse, tensors)
        y, final = ctx.call.forward(save=True)
        ctx.save_for_backward(*tensors)
        ctx.call.tensors = ()  # the saved ones are checked for changes; these would not be
        return (y, *final)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        if torch.is_grad_enabled() or any(map(_is_batched, grads)):
            found = _differentiable_backward(ctx, grads)
        else:
            found = ctx.call.backward(ctx.saved_tensors, ctx.needs_input_grad[3:], grads)
        return (None, None, None, *found)


def _is_batched(grad: torch.Tensor | None) -> bool:
    """Whether it stands for many gradients at once (vmap over backward): it has no memory for a kernel to read."""
    return grad is not None and (_functorch.is_batchedtensor(grad) or _functorch.is_legacy_batchedtensor(grad))


def _differentiable_backward(ctx: Any, grads: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The backward pass in PyTorch's own operations, which can be differentiated and batched."""
    call, tensors, create_graph = ctx.call, ctx.saved_tensors, torch.is_grad_enabled()
    x, weight_ih, weight_hh, bias_ih, bias_hh, *rest = tensors
    count = len(call.cell.states)
    with torch.enable_grad():
        y, final = reference.run(
            call.cell, x, call.batch_sizes, rest[:count], weight_ih, weight_hh, bias_ih, bias_hh, rest[count:],
            reverse=call.reverse,
        )  # fmt: skip
    pairs = [
        (out, grad) for out, grad in zip((y, *final), grads, strict=True) if grad is not None and out.requires_grad
    ]
    wanted = [place for place, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
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


def _contiguous(tensors: Sequence[Any]) -> list[Any]:
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


@lru_cache(maxsize=8)
def _dense_offsets(steps: int, batch: int) -> torch.Tensor:
    """Where each step's rows begin in a dense batch; nothing ever writes to it."""
    with torch.inference_mode(False):
        return torch.arange(0, (steps + 1) * batch, batch)


class _Call:
    """One forward pass, and what its backward pass needs of it."""

    def __init__(self, cell: Cell, batch_sizes: Sequence[int], reverse: bool, tensors: Sequence[Any]) -> None:
        self.cell, self.batch_sizes, self.reverse, self.tensors = cell, batch_sizes, reverse, tensors
        x, weight_ih, _, _, _, first_state = tensors[:6]
        self.dtype = x.dtype
        self.rows, self.inputs = x.shape
        self.batch, self.hidden = first_state.shape
        _check(cell, tensors, self.hidden)
        self.kernels = kernels_for(cell.graph, cell.gates, cell.states, cell.vectors, _DTYPES[x.dtype])
        self.tiling = self.kernels.tiling(self.inputs, self.hidden)
        self.width = self.tiling.width(self.hidden)
        work = self.rows * weight_ih.shape[0] * (self.inputs + self.hidden)
        wanted = 1 if work < _ALONE else min(torch.get_num_threads(), self.batch // 4)
        self.threads = max(1, team().size(wanted))
        steps = len(batch_sizes)
        if steps and batch_sizes[0] == batch_sizes[-1]:  # sizes never grow: all are equal
            self.offsets = _dense_offsets(steps, batch_sizes[0])
        else:
            self.offsets = torch.tensor([0, *accumulate(batch_sizes)])

    def _common(self, tile_rows: int) -> dict[str, int]:
        # As many blocks of rows as tiles need, and as many for each thread.
        blocks = min(self.batch, round_up(round_up(self.batch, tile_rows) // tile_rows, self.threads))
        workers = team()
        return {
            "threads": self.threads, "parallel": workers.parallel, "thread_num": workers.thread_num,
            "num_threads": workers.num_threads, "steps": len(self.batch_sizes), "batch": self.batch,
            "inputs": self.inputs, "hidden": self.hidden, "width": self.width, "blocks": blocks,
            "backward_in_time": int(self.reverse), "offsets": self.offsets.data_ptr(),
        }  # fmt: skip

    def forward(self, *, save: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Run the kernel; with ``save`` keep what `backward` reads."""
        plan = self.kernels.plan
        x, weight_ih, weight_hh, bias_ih, bias_hh, *rest = _contiguous(self.tensors)
        count = len(plan.states)
        initial, vectors = rest[:count], rest[count:]
        y = x.new_empty(self.rows, self.hidden)
        if not self.rows:
            return y, tuple(each.clone() for each in initial)

        final = [x.new_empty(self.batch, self.width) for _ in plan.states]
        per_unit = self.inputs * len(plan.input_gates) + self.hidden * len(plan.recurrent_gates)
        sizes = [len(vectors), len(plan.accumulators), per_unit]
        scratch = Buffer(self.dtype, [self.width * size for size in sizes])
        kept = [self.rows if save else 2 * self.batch] * count + [self.rows * plan.saved if save else 0]
        memory = Buffer(self.dtype, [self.width * size for size in kept])
        values = self._common(self.tiling.rows(len(plan.accumulators) * self.tiling.unit_vectors))
        values |= {
            "w_ih": weight_ih.data_ptr(), "w_hh": weight_hh.data_ptr(), "keep": int(save),
            "x": x.data_ptr(), "y": y.data_ptr(), "b_ih": 0 if bias_ih is None else bias_ih.data_ptr(),
            "b_hh": 0 if bias_hh is None else bias_hh.data_ptr(), "packed_vectors": scratch.addresses[0],
            "packed_bias": scratch.addresses[1], "packed": scratch.addresses[2], "saved": memory.addresses[-1],
        }  # fmt: skip
        for place, name in enumerate(plan.states):
            values[f"initial.{name}"] = initial[place].data_ptr()
            values[f"states.{name}"] = memory.addresses[place]
            values[f"final.{name}"] = final[place].data_ptr()
        for name, vector in zip(plan.vectors, vectors, strict=True):
            values[f"vector.{name}"] = vector.data_ptr()
        self.kernels.forward(self.tiling, save=save)(values)

        if save:
            self.memory = memory
        if self.width != self.hidden:
            final = [each[:, : self.hidden].contiguous() for each in final]
        begun = self.batch_sizes[0]
        if begun < self.batch:  # rows of length 0
            for each, start in zip(final, initial, strict=True):
                each[begun:] = start[begun:]
        return y, tuple(final)

    def backward(
        self,
        tensors: Sequence[Any],
        needed: Sequence[bool],
        grads: Sequence[torch.Tensor | None],
    ) -> list[torch.Tensor | None]:
        """Gradients of ``tensors`` (None where not needed) from those of y and the final states."""
        plan, tiling, hidden = self.kernels.plan, self.tiling, self.hidden
        x, weight_ih, weight_hh, _, _, *rest = _contiguous(tensors)
        count, gates = len(plan.states), len(plan.gates) * hidden
        vectors = rest[count:]
        dy, *dfinal = grads
        grad_width = max(self.width, round_up(hidden, tiling.hidden_wide * tiling.lanes))
        grad_states = [x.new_zeros(self.batch, grad_width) for _ in plan.states]
        for into, grad in zip(grad_states, dfinal, strict=True):
            if grad is not None:
                into[:, :hidden] = grad
        columns = backward.chunk_columns(plan, hidden)
        sums = x.new_zeros(round_up(columns, tiling.lanes))
        dx = torch.empty_like(x) if needed[0] else None
        want_weights = needed[1] or needed[2]
        dw_ih = x.new_zeros(self.inputs, gates) if want_weights else None
        dw_hh = x.new_zeros(hidden, gates) if want_weights else None
        if self.rows:
            dy = x.new_zeros(hidden) if dy is None else dy.contiguous().resolve_neg()
            stride = backward.chunk_stride(tiling, columns)
            chunk_steps = max(1, backward.chunk_rows(stride, x.itemsize) // self.batch)
            panel_units = [round_up(size, wide * tiling.lanes) for size, wide in
                           ((self.inputs, tiling.input_wide), (hidden, tiling.hidden_wide))]  # fmt: skip
            scratch = Buffer(
                self.dtype,
                [
                    len(vectors) * self.width,
                    min(chunk_steps, len(self.batch_sizes)) * self.batch * stride + backward.WIDE * tiling.lanes,
                    *(units * gates for units in panel_units),
                ],
            )
            values = self._common(tiling.rows(tiling.hidden_wide))
            values |= {
                "w_ih": weight_ih.data_ptr(), "w_hh": weight_hh.data_ptr(), "chunk_steps": chunk_steps,
                "chunk_stride": stride, "columns": columns, "grad_width": grad_width, "x": x.data_ptr(),
                "dx": 0 if dx is None else dx.data_ptr(), "dy": dy.data_ptr(),
                "dy_stride": hidden if dy.dim() == 2 else 0,
                "dw_ih": 0 if dw_ih is None else dw_ih.data_ptr(), "dw_hh": 0 if dw_hh is None else dw_hh.data_ptr(),
                "sums": sums.data_ptr(), "saved": self.memory.addresses[-1], "packed_vectors": scratch.addresses[0],
                "chunk": scratch.addresses[1], "packed_ih": scratch.addresses[2],
                "packed_hh": scratch.addresses[3], "begin": 0, "end": 0,
            }  # fmt: skip
            for place, name in enumerate(plan.states):
                values[f"states.{name}"] = self.memory.addresses[place]
                values[f"grad.{name}"] = grad_states[place].data_ptr()
            for name, vector in zip(plan.vectors, vectors, strict=True):
                values[f"vector.{name}"] = vector.data_ptr()
            self.kernels.backward(tiling)(values)

        dbias_ih = sums[:gates]
        dbias_hh = sums[gates : 2 * gates] if plan.split else dbias_ih
        dvectors = sums[columns - len(vectors) * hidden : columns].split(hidden) if vectors else ()
        dinitial = (each[:, :hidden] for each in grad_states)
        # A transposed view: autograd lays it out as the parameter is.
        dweights = (None if each is None else each.t() for each in (dw_ih, dw_hh))
        found = (dx, *dweights, dbias_ih, dbias_hh, *dinitial, *dvectors)
        return [grad if wanted else None for grad, wanted in zip(found, needed, strict=True)]
