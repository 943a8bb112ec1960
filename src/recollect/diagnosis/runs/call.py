"""One call of a recurrent layer, as the model made it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from recollect.diagnosis.runs.unrolled import Unrolled
from recollect.errors import InputError
from recollect.nn import Recurrent


@dataclass(eq=False)
class Call:
    """The last time that one recurrent layer ran.

    Attributes:
        path: the module's path in the model, "" for a bare layer.
        layer: the module, in the copy.
        batch, steps: B and T of its input.
        lengths: [B] valid steps of each row in the model's own order; None where all steps are valid.
        ragged: the layer itself was told the lengths, so its rows are sorted by them.
        unbatched: the input was a single sequence without a batch dimension.
        times: how often the layer has run by then.
        x: its input, without a graph.
        unrolled: its levels and directions by label, such as "l1_reverse", in the order in which they ran.
    """

    path: str
    layer: Recurrent
    batch: int
    steps: int
    lengths: Tensor | None
    ragged: bool
    unbatched: bool
    times: int
    x: Any
    unrolled: dict[str, Unrolled] = field(default_factory=dict)

    def take_lengths(self, lengths: Tensor) -> None:
        """Count lags from the lengths that the user gave, where the layer itself has run over the padding.

        Raises:
            InputError: they do not fit the layer's batch.
        """
        if self.ragged:
            return
        whole = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
        if not whole or lengths.shape != (self.batch,) or lengths.min() < 0 or lengths.max() > self.steps:
            raise InputError(
                "lengths do not fit what the recurrent layer was given",
                given=lengths.tolist() if lengths.numel() <= 8 else f"{lengths.dtype} {tuple(lengths.shape)}",
                expected=f"{self.batch} whole number(s) from 0 to T = {self.steps}",
            )
        self.lengths = lengths.long().cpu()

    def lengths_of(self, unrolled: Unrolled) -> NDArray[np.int64]:
        """The valid steps of each row, in the order in which the rows of the steps stand."""
        if self.lengths is not None and not self.ragged:
            return self.lengths.numpy()
        # Rows are sorted by length, so row r is active in as many steps as have more than r rows.
        sizes = np.array([len(step.new[0]) for step in unrolled.steps])
        return (sizes[:, None] > np.arange(sizes.max(initial=0))).sum(0)

    def places_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows of the model's batch stand among the rows of a step."""
        order = None
        if isinstance(self.x, PackedSequence):
            order = None if self.x.sorted_indices is None else self.x.sorted_indices.numpy(force=True)
        elif self.ragged and self.lengths is not None:
            order = np.argsort(-self.lengths.numpy(), kind="stable")
        return rows if order is None else np.argsort(order)[rows]

    def rows(self) -> Tensor:
        """[B, T, I] the input, whatever its layout, with padding."""
        if isinstance(self.x, PackedSequence):
            return pad_packed_sequence(self.x, batch_first=True)[0]
        x = self.x.unsqueeze(0 if self.layer.batch_first else 1) if self.unbatched else self.x
        return x if self.layer.batch_first else x.transpose(0, 1)

    def example_input(self) -> NDArray[np.float64]:
        """[T, I] the input of the longest row (the first of them), its valid steps."""
        row, steps = (0, self.steps) if self.lengths is None else (int(self.lengths.argmax()), int(self.lengths.max()))
        return self.rows()[row, :steps].cpu().numpy()


def join(*parts: str) -> str:
    """A dotted name such as "rnn.l0.h", without empty parts."""
    return ".".join(part for part in parts if part)


def choose(calls: Sequence[Call], layer: str | None) -> tuple[Call, Unrolled, str]:
    """Find the curve that ``layer`` names: of those it fits, the last to run, top level, forward, first state.

    Args:
        calls: in the order in which they ran.
        layer: the path of a module, the beginning of the name of a curve ("rnn.l0.h"), or None for all of them.

    Returns:
        The call, the level and direction, and the name of the curve.

    Raises:
        InputError: it names none.
    """
    homes = {
        f"{each.name}.{state}": (call, each)
        for call in calls
        for each in call.unrolled.values()
        for state in call.layer.cell.states
    }
    fitting = [name for name in homes if layer is None or name == layer or name.startswith(f"{layer}.")]
    if not fitting:
        near = difflib.get_close_matches(str(layer), list(homes), 1, cutoff=0.4)
        raise InputError(
            "no recurrent layer that ran fits layer=",
            given=repr(layer),
            expected="the path of a module, or the beginning of one of " + ", ".join(homes),
            remedy=f"did you mean {near[0]!r}?" if near else None,
        )
    last = homes[fitting[-1]][0]
    runs = [each for call, each in (homes[name] for name in fitting) if call is last]
    # They come in the order l0, l0_reverse, l1, ...
    forward = [each for each in runs if not each.reverse] or runs
    return next((*homes[name], name) for name in fitting if homes[name] == (last, forward[-1]))
