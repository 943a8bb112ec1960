"""The torch backend: the standard cells on PyTorch's own kernels (cuDNN on a GPU).

It serves what the llvm backend does not have yet (other devices, projected outputs) faster
than the reference does, where the cell is one of the four that torch has kernels for.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from recollect import cells
from recollect.cells.cell import Cell
from recollect.engine.autograd import transformed
from recollect.engine.layout import Layout
from recollect.engine.plan import Variant
from recollect.engine.reference import Result, Weights, zero_states


@lru_cache(maxsize=1)
def _kernels() -> dict[str, Callable[..., Any]]:
    """By the content of the cell's graph, so that another cell called lstm is not taken for it."""
    vf = torch._VF
    pairs = ((cells.lstm, vf.lstm), (cells.gru, vf.gru), (cells.rnn_tanh, vf.rnn_tanh), (cells.rnn_relu, vf.rnn_relu))
    return {cell.graph.key: kernel for cell, kernel in pairs}


def obstacle(cell: Cell, x: torch.Tensor, variant: Variant, *, projected: bool) -> str | None:
    """Why torch's kernels cannot serve this call, or None where they can."""
    if cell.graph.key not in _kernels():
        return f"cell {cell.name!r}, which torch has no kernel for"
    if projected and cell.graph.key != cells.lstm.graph.key:
        return f"a projected output of cell {cell.name!r}"
    asked = [name for name, given in variant._asdict().items() if given]
    if asked:
        return f"{', '.join(asked)}, which torch's kernels do not have"
    return transformed(x)


def run(
    cell: Cell,
    x: torch.Tensor,
    layout: Layout,
    states: Sequence[torch.Tensor] | None,
    weights: Weights,
    *,
    reverse: bool,
) -> Result:
    """Run one layer in one direction; arguments and returns as `reference.run`."""
    rows, begun, steps = layout.take(x), layout.sizes[0], len(layout.sizes)  # what comes after are rows of length 0
    states = states or zero_states(cell, x, layout.batch, weights)
    initial = [state[:, :begun].contiguous() for state in states]
    hx = initial if len(initial) > 1 else initial[0]
    flat = [each for each in (*weights[:4], weights.hr) if each is not None]
    # cuDNN keeps what its backward pass needs only in training mode, whatever mode the module is in.
    how = (weights.bias_ih is not None, 1, 0.0, torch.is_grad_enabled(), False)
    kernel = _kernels()[cell.graph.key]
    with _quiet() if weights.hr is not None else contextlib.nullcontext():
        if begun == layout.sizes[-1]:
            sequence = rows.unflatten(0, (steps, begun))
            y, *final = kernel(sequence.flip(0) if reverse else sequence, hx, flat, *how, False)
            y = (y.flip(0) if reverse else y).flatten(0, 1)
        else:
            sizes = torch.tensor(layout.sizes, device="cpu")
            turned = _turned(sizes).to(x.device) if reverse else None
            y, *final = kernel(rows if turned is None else rows[turned], sizes, hx, flat, *how)
            y = y if turned is None else y[turned]
    return (layout.restore(y),), tuple(
        torch.cat([each, state[:, begun:]], 1) if begun < state.shape[1] else each
        for each, state in zip(final, states, strict=True)
    )


_FILTERS = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's word that oneDNN has no projection: whoever calls our layer did not ask for oneDNN.

    One thread at a time, as the filters are the process's: of two the last would put back what the other had set.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


def _turned(sizes: torch.Tensor) -> torch.Tensor:
    """[N] for each packed row the place of the same sequence's step counted from its other end; its own inverse."""
    batch = int(sizes[0])
    active = torch.arange(batch, device="cpu") < sizes.unsqueeze(1)  # [T, B]
    step, row = active.nonzero(as_tuple=True)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return starts[active.sum(0)[row] - 1 - step] + row
