"""A layer that runs on and on: its input again and again, its state carried along."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recollect.diagnosis.flow import Curve
from recollect.diagnosis.runs.call import Call

BLOCKS = 10
_MOST_ROWS, _MOST_STEPS = 4, 2000


def free_run(call: Call) -> dict[str, Curve]:
    """How large a layer's states are while its input is repeated ten times.

    At most four rows that are as long as the longest go on, with at most their first 2,000 steps; directions that
    run forward only.

    Returns:
        For each state (``"rnn.l0.c"``) the root mean square over rows of its norm after each repetition, [10].
    """
    layer, x = call.layer, _rows(call)
    found: dict[str, list[float]] = {}
    state = None
    with torch.no_grad():
        for _ in range(BLOCKS):
            _, state = layer(x, state)
            every = (state,) if isinstance(state, Tensor) else state
            for place, each in enumerate(call.unrolled.values()):
                for name, values in zip(layer.cell.states, every, strict=True):
                    if not each.reverse:
                        norms = torch.linalg.vector_norm(values[place], dim=-1)
                        found.setdefault(f"{each.name}.{name}", []).append(float(norms.square().mean().sqrt()))
    return {name: np.array(norms) for name, norms in found.items()}


def _rows(call: Call) -> Tensor:
    """[T, rows, I] or [rows, T, I] of the longest rows of a layer's input."""
    lengths = torch.full((call.batch,), call.steps) if call.lengths is None else call.lengths
    steps = int(lengths.max())
    rows = torch.nonzero(lengths == steps).flatten()[:_MOST_ROWS]
    x = call.rows()
    x = x[rows.to(x.device), : min(steps, _MOST_STEPS)]
    return x if call.layer.batch_first else x.transpose(0, 1)
