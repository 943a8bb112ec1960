"""The llvm backend in PyTorch: one layer in one direction as an autograd Function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]  (has no stub)

from recollect.cells.cell import Cell
from recollect.engine import reference
from recollect.engine.buffers import Buffer, room
from recollect.engine.llvm.kernels import Kernels, kernels_for
from recollect.engine.llvm.machine import host
from recollect.engine.llvm.team import team

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}

# Below this many multiply-adds a second thread costs more than it brings.
_ALONE = 1 << 20


def obstacle(x: torch.Tensor) -> str | None:
    """Why llvm cannot serve rows like ``x``, or None where it can."""
    if x.device.type != "cpu":
        return f"a tensor on {x.device}"
    if x.dtype not in _DTYPES:
        return str(x.dtype)
    if torch.compiler.is_compiling():
        return "a call that torch.compile traces"
    if _functorch.peek_interpreter_stack() is not None:
        return "a call inside a torch.func transform"
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
        if torch.is_grad_enabled():
            found = _differentiable_backward(ctx, grads)
        else:
            found = ctx.call.backward(ctx.saved_tensors, ctx.needs_input_grad[3:], grads)
        return (None, None, None, *found)


def _differentiable_backward(ctx: Any, grads: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The backward pass as a graph that can itself be differentiated."""
    call, tensors = ctx.call, ctx.saved_tensors
    x, weight_ih, weight_hh, bias_ih, bias_hh, *rest = tensors
    count = len(call.cell.states)
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
        create_graph=True,
        allow_unused=True,
    )
    result: list[torch.Tensor | None] = [None] * len(tensors)
    for place, grad in zip(wanted, found, strict=True):
        result[place] = grad
    return result


class _Call:
    """One forward pass, and what its backward pass needs of it."""

    def __init__(self, cell: Cell, batch_sizes: Sequence[int], reverse: bool, tensors: Sequence[Any]) -> None:
        self.cell, self.batch_sizes, self.reverse, self.tensors = cell, batch_sizes, reverse, tensors
        x, weight_ih, _, _, _, first_state = tensors[:6]
        self.dtype = x.dtype
        self.rows, self.inputs = x.shape
        self.batch, self.hidden = first_state.shape
        self.kernels: Kernels = kernels_for(
            cell.graph, cell.gates, cell.states, cell.vectors, _DTYPES[x.dtype], self.hidden
        )
        shape = self.kernels.shape
        self.width = shape.width(self.hidden)
        work = self.rows * weight_ih.shape[0] * (self.inputs + self.hidden)
        wanted = 1 if work < _ALONE else min(torch.get_num_threads(), self.batch // 4)
        self.threads = max(1, team().size(wanted))
        # Not growing, so equal ends mean that all are equal.
        dense = not batch_sizes or batch_sizes[0] == batch_sizes[-1]
        self.sizes = torch.tensor(batch_sizes[:1] if dense else batch_sizes, dtype=torch.int64)
        self.sizes_step = 0 if dense else 1

    def _common(self, tile_rows: int) -> dict[str, int]:
        # As many blocks as tiles need, dealt evenly to the threads.
        blocks = -(-self.batch // tile_rows)
        blocks = min(self.batch, -(-blocks // self.threads) * self.threads)
        workers = team()
        return {
            "threads": self.threads, "parallel": workers.parallel, "thread_num": workers.thread_num,
            "num_threads": workers.num_threads, "steps": len(self.batch_sizes), "batch": self.batch,
            "rows": self.rows, "hidden": self.hidden, "blocks": blocks, "backward_in_time": int(self.reverse),
            "batch_sizes": self.sizes.data_ptr(), "batch_sizes_step": self.sizes_step, "width": self.width,
        }  # fmt: skip

    def forward(self, *, save: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        plan, shape = self.kernels.plan, self.kernels.shape
        tensors: list[Any] = [each if each is None else each.detach().contiguous() for each in self.tensors]
        x, weight_ih, weight_hh, bias_ih, bias_hh, *rest = tensors
        count = len(plan.states)
        initial, vectors = rest[:count], rest[count:]
        y = x.new_empty(self.rows, self.hidden)
        final = [x.new_empty(self.batch, self.width) for _ in plan.states]
        if not self.rows:
            return y, tuple(each.clone() for each in initial)

        packed = self.width * (self.inputs * len(plan.gates_of("inp")) + self.hidden * len(plan.gates_of("rec")))
        bias = self.width * len(plan.accumulators)
        kept_rows = self.rows if save else 2 * self.batch
        own = [self.width * len(plan.vectors), bias, packed]
        kept = [kept_rows * self.width] * count + [self.rows * plan.saved * self.width if save else 0]
        scratch = Buffer(room(*own), self.dtype)
        memory = Buffer(room(*kept), self.dtype)
        vectors_at, bias_at, packed_at = (scratch.take(size) for size in own)
        states = [memory.take(kept_rows, self.width) for _ in plan.states]
        saved = memory.take(kept[-1])
        values = self._common(shape.tile_rows)
        values |= {
            "w_hh": weight_hh.data_ptr(), "packed": packed_at.data_ptr(), "inputs": self.inputs, "keep": int(save),
            "x": x.data_ptr(), "y": y.data_ptr(), "w_ih": weight_ih.data_ptr(),
            "b_ih": 0 if bias_ih is None else bias_ih.data_ptr(),
            "b_hh": 0 if bias_hh is None else bias_hh.data_ptr(),
            "packed_bias": bias_at.data_ptr(), "packed_vectors": vectors_at.data_ptr(), "saved": saved.data_ptr(),
        }  # fmt: skip
        for kind, group in (("initial", initial), ("states", states), ("final", final)):
            values |= {f"{kind}.{name}": each.data_ptr() for name, each in zip(plan.states, group, strict=True)}
        values |= {f"vector.{name}": each.data_ptr() for name, each in zip(plan.vectors, vectors, strict=True)}
        (self.kernels.train if save else self.kernels.infer)(values)

        if save:
            self.memory, self.states, self.saved = memory, states, saved
        begun = self.batch_sizes[0]
        results = []
        for each, start in zip(final, initial, strict=True):
            result = each if self.width == self.hidden else each[:, : self.hidden].contiguous()
            result[begun:] = start[begun:]  # rows of length 0
            results.append(result)
        return y, tuple(results)

    def backward(
        self,
        tensors: Sequence[Any],
        needed: Sequence[bool],
        grads: Sequence[torch.Tensor | None],
    ) -> list[torch.Tensor | None]:
        """Gradients of ``tensors`` (None where not needed) from those of y and the final states."""
        plan, shape = self.kernels.plan, self.kernels.shape
        x, weight_ih, weight_hh, _, _, *rest = tensors
        count, gates = len(plan.states), len(plan.gates)
        vectors = [each.contiguous() for each in rest[count:]]
        width, panel_width = self.width, shape.panel_width(self.hidden)
        dy, *dfinal = grads
        grad_states = [x.new_zeros(self.batch, panel_width) for _ in plan.states]
        for into, grad in zip(grad_states, dfinal, strict=True):
            if grad is not None:
                into[:, : self.hidden] = grad
        sums = x.new_zeros(self.threads, len(self.kernels.sums), width)
        per_gate = self.rows * gates * self.hidden
        own = [
            per_gate,
            per_gate if plan.split else 0,
            len(vectors) * width,
            panel_width * gates * self.hidden,
        ]
        scratch = Buffer(room(*own), self.dtype)
        dinp, drec, vectors_at, packed = (scratch.take(size) for size in own)
        dinp = dinp.view(self.rows, gates * self.hidden)
        drec = drec.view(self.rows, gates * self.hidden) if plan.split else dinp
        if self.rows:
            dense_dy = x.new_zeros(self.hidden) if dy is None else dy.contiguous()
            dense_w = weight_hh.contiguous()
            values = self._common(shape.panel_rows)
            values |= {
                "w_hh": dense_w.data_ptr(), "packed": packed.data_ptr(), "panel_width": panel_width,
                "dy": dense_dy.data_ptr(), "dy_stride": 0 if dy is None else self.hidden, "dinp": dinp.data_ptr(),
                "drec": drec.data_ptr(), "sums": sums.data_ptr(), "saved": self.saved.data_ptr(),
                "packed_vectors": vectors_at.data_ptr(),
            }  # fmt: skip
            for kind, group in (("states", self.states), ("grad", grad_states)):
                values |= {f"{kind}.{name}": each.data_ptr() for name, each in zip(plan.states, group, strict=True)}
            values |= {f"vector.{name}": each.data_ptr() for name, each in zip(plan.vectors, vectors, strict=True)}
            self.kernels.backward(values)

        totals = dict(zip(self.kernels.sums, sums.sum(0)[:, : self.hidden], strict=True))
        found: list[torch.Tensor | None] = [None] * len(tensors)
        if needed[0]:
            found[0] = dinp @ weight_ih
        if needed[1]:
            found[1] = dinp.t() @ x
        if needed[2]:
            previous = self.states[0][:, : self.hidden] if self.rows else x.new_zeros(0, self.hidden)
            found[2] = drec.t() @ previous
        for place, kind in ((3, "dinp"), (4, "drec" if plan.split else "dinp")):
            if needed[place]:
                found[place] = torch.cat([totals[f"{kind}.{gate}"] for gate in plan.gates])
        for place in range(count):
            if needed[5 + place]:
                found[5 + place] = grad_states[place][:, : self.hidden]
        for place, name in enumerate(plan.vectors):
            if needed[5 + count + place]:
                found[5 + count + place] = totals[f"dvec.{name}"]
        return found
