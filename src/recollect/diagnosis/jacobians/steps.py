"""Exact products with the Jacobians of a layer's steps, read off the cell's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recollect.diagnosis.runs.call import choose
from recollect.diagnosis.runs.recording import unroll
from recollect.diagnosis.runs.unrolled import Unrolled
from recollect.errors import InputError
from recollect.graph.derivatives import partials
from recollect.graph.trace import TorchTarget

# Numbers in the derivatives of the steps that are looked at together.
_AT_ONCE = 1 << 21


class StepJacobians:
    """The Jacobians J = d(states leaving a step)/d(states entering it) of some steps of some rows.

    Since a step is elementwise, J is made of diagonal matrices, which the derivatives of the cell's graph give exactly,
    of W_hh, and of zoneout and the projection where there are any. Only products with J are formed. All states of a
    row are one vector of D numbers, in the cell's order: h (F numbers), then H of each other state.

    A step before which a row was reset does not see what the step before left: its J is 0.

    Args:
        unrolled: the run.
        places: [n, R] which of its stacked rows: R rows at each of n steps.

    Raises:
        InputError: a derivative is not finite.
    """

    def __init__(self, unrolled: Unrolled, places: NDArray[np.int64]) -> None:
        layer = unrolled.layer
        self._cell, self._keep = layer.cell, layer.zoneout
        self._hh: Tensor = getattr(layer, f"weight_hh_{unrolled.label}").detach()
        self._hr: Tensor | None = None
        if layer.proj_size:
            self._hr = getattr(layer, f"weight_hr_{unrolled.label}").detach()
        self._units = layer.hidden_size
        self.sizes = state_sizes(unrolled)

        index = torch.from_numpy(places.ravel()).to(self._hh.device)
        leaves = {name: leaf if leaf.dim() == 1 else leaf[index] for name, leaf in unrolled.leaves.items()}
        found = partials(self._cell.graph).evaluate(leaves, TorchTarget(self._hh.dtype))
        follows = torch.from_numpy(unrolled.follows[places]).to(self._hh)
        self._follows = follows[..., None, None]
        # By "state/leaf", [n, R, 1, H]: what stands on the diagonal.
        self._diagonals: dict[str, Tensor] = {}
        for key, derivative in found.items():
            if not key.partition("/")[2].startswith(("rec.", "prev.")):
                continue
            diagonal = self._hh.new_ones(places.size, self._units) * derivative
            if not torch.isfinite(diagonal).all():
                raise InputError(
                    "a step has no finite Jacobian",
                    given=f"d{key.replace('/', '/d ')} of {unrolled.name}, "
                    f"{int((~torch.isfinite(diagonal)).sum())} of {diagonal.numel()} values",
                    expected="finite derivatives",
                    remedy="look for a function in the cell whose slope is infinite where the states are",
                )
            self._diagonals[key] = diagonal.view(*places.shape, 1, self._units) * self._follows

    def jvp(self, step: int, tangents: Tensor) -> Tensor:
        """J v: where small changes of the states before a step lead.

        Args:
            step: which of the n.
            tangents: [r, m, D], m vectors for each of the first r rows.

        Returns:
            [r, m, D].
        """
        parts = tangents.split(self.sizes, -1)
        shares = (parts[0] @ self._hh.T).split(self._units, -1)
        sources = {f"rec.{gate}": share for gate, share in zip(self._cell.gates, shares, strict=True)}
        sources |= {f"prev.{state}": part for state, part in zip(self._cell.states, parts, strict=True)}
        rows, new = len(tangents), []
        for place, state in enumerate(self._cell.states):
            total = tangents.new_zeros(*tangents.shape[:-1], self._units)
            for leaf, source in sources.items():
                if (diagonal := self._diagonals.get(f"{state}/{leaf}")) is not None:
                    total = torch.addcmul(total, diagonal[step, :rows], source)
            if self._hr is not None and place == 0:
                total = total @ self._hr.T
            if keep := self._keep[place]:
                total = keep * self._follows[step, :rows] * parts[place] + (1.0 - keep) * total
            new.append(total)
        return torch.cat(new, -1)

    def vjp(self, step: int, cotangents: Tensor) -> Tensor:
        """w J: how what depends on the states after a step depends on those before it; shapes as in `jvp`."""
        parts, rows = cotangents.split(self.sizes, -1), len(cotangents)
        seeds = [(1.0 - keep) * part if keep else part for keep, part in zip(self._keep, parts, strict=True)]
        if self._hr is not None:
            seeds[0] = seeds[0] @ self._hr

        def pulled(leaf: str) -> Tensor:
            total = cotangents.new_zeros(*cotangents.shape[:-1], self._units)
            for state, seed in zip(self._cell.states, seeds, strict=True):
                if (diagonal := self._diagonals.get(f"{state}/{leaf}")) is not None:
                    total = torch.addcmul(total, diagonal[step, :rows], seed)
            return total

        fed = torch.cat([pulled(f"rec.{gate}") for gate in self._cell.gates], -1) @ self._hh
        old = []
        for place, (state, keep, part) in enumerate(zip(self._cell.states, self._keep, parts, strict=True)):
            own = fed if place == 0 else 0.0
            if place or self._hr is None:  # a cell whose output is projected does not read it
                own = own + pulled(f"prev.{state}")
            old.append(own + keep * self._follows[step, :rows] * part if keep else own)
        return torch.cat(old, -1)

    def matrix(self, step: int) -> Tensor:
        """J itself, [R, D, D]."""
        D = sum(self.sizes)
        eye = torch.eye(D, dtype=self._hh.dtype, device=self._hh.device)
        return self.jvp(step, eye.expand(self._follows.shape[1], D, D)).mT


def state_sizes(unrolled: Unrolled) -> list[int]:
    """How many numbers each state of a row has; D is their sum."""
    layer = unrolled.layer
    return [layer.proj_size or layer.hidden_size, *[layer.hidden_size] * (len(layer.cell.states) - 1)]


def steps_at_once(unrolled: Unrolled, rows: int) -> int:
    """How many steps a `StepJacobians` should hold, for so many rows."""
    cell = unrolled.layer.cell
    each = rows * unrolled.layer.hidden_size * len(cell.states) * (len(cell.gates) + len(cell.states))
    return max(1, _AT_ONCE // each)


def chosen(
    model: nn.Module, x: Any, lengths: Any, layer: str | None, rows: Sequence[int] | None, most: int
) -> tuple[Unrolled, NDArray[np.int64], NDArray[np.int64]]:
    """Run a model and choose a layer and rows to look at.

    Args:
        layer: as in `diagnose`.
        rows: which rows of the layer's batch; None for the longest.
        most: how many, where ``rows`` is None.

    Returns:
        ``(unrolled, rows, within)``: the run; the rows, the longest first; and where they stand within a step.

    Raises:
        InputError: as `unroll` and `choose`; a row is not there or has fewer than two valid steps.
    """
    calls = unroll(model, x, lengths)
    call, unrolled, _ = choose(calls, layer)
    wanted = np.arange(call.batch) if rows is None else np.array(rows)
    usable = wanted.ndim == 1 and len(wanted) and np.issubdtype(wanted.dtype, np.integer)
    if rows is not None and not (usable and wanted.min() >= 0 and wanted.max() < call.batch):
        raise InputError(
            "there are no such rows",
            given=f"rows={rows}",
            expected=f"a list of whole numbers from 0 to {call.batch - 1}",
        )
    within = call.places_of(wanted)
    # Rows of length 0 stand behind all others and have no step.
    steps = np.concatenate([unrolled.lengths, np.zeros(call.batch, np.int64)])[within]
    order = np.argsort(-steps, kind="stable")[: most if rows is None else None]
    if rows is None:
        order = order[steps[order] > 1]
    if not len(order) or steps[order].min() < 2:
        raise InputError(
            "a Jacobian through time needs at least two steps",
            given=f"rows of {unrolled.name or 'the layer'} with {min(steps.tolist(), default=0)} valid step(s)",
            expected="T >= 2",
            remedy="pass longer sequences, or choose rows that have two steps or more",
        )
    return unrolled, wanted[order], within[order]
