"""How much the answer of a model depends on its input at each lag: by its gradient, and by replacing inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recollect.diagnosis.flow import row_norms
from recollect.diagnosis.memory.sequences import Sequences
from recollect.diagnosis.runs.call import Call
from recollect.diagnosis.runs.objective import answers
from recollect.diagnosis.runs.twin import Twin, map_tensors
from recollect.errors import InputError

# Directions of the answer that are followed back, each by a backward pass: all of them up to so many.
PROBES = 32
# Numbers that one run may handle at a time; 8 bytes each.
_AT_ONCE = 1 << 23


def answer(twin: Twin, x: Tensor | PackedSequence | None = None, copies: int = 1) -> Tensor:
    """What the model says in the end, [copies * B, n]; arguments as those of `Twin.run`."""
    output = twin.run(x, copies)
    return answers(twin.model, output, twin.calls[-1])


def gradient_norms(
    twin: Twin, sequences: Sequences, seed: int, advance: Callable[[int], None]
) -> tuple[NDArray[np.float64] | None, str | None]:
    """The norm of d(answer)/d(input) by row and lag, and a note where the input is not the model's own.

    Args:
        sequences: a copy of the model's input.
        seed: draws the directions of an answer of more than `PROBES` numbers.
        advance: called with the number of directions done.

    Returns:
        [B, T_max] Frobenius norms, NaN where a row has no such lag; None where no gradient reaches the input.
    """
    flat = sequences.flat
    if flat.is_floating_point():
        leaf = flat.detach().clone().requires_grad_()
        norms = _norms(answer(twin, sequences.rebuilt(leaf.clone().unsqueeze(0))), leaf, len(flat), seed, advance)
        if norms is not None:
            return sequences.by_lag(norms), None
    name = sequences.call.path or "the layer"
    if sequences.call.times > 1:
        return None, f"no gradient passes the model's own input, and {name} runs several times"
    inner, found = _from_the_layers_input(twin, sequences.call)
    own = Sequences(inner, [sequences.call])
    source = inner.data if isinstance(inner, PackedSequence) else inner
    norms = _norms(found, source, len(own.flat), seed, advance)
    if norms is None:
        return None, "no gradient passes from the output to the input of a recurrent layer"
    return own.by_lag(norms), f"the gradient is that of the input of {name}, since none passes the model's own"


def changes(
    twin: Twin,
    sequences: Sequences,
    said: Tensor,
    lags: NDArray[np.int64],
    samples: int,
    seed: int,
    advance: Callable[[int], None],
) -> NDArray[np.float64]:
    """Replace inputs, one at a time, and measure how far the answer moves.

    Args:
        sequences: a copy of the model's input.
        said: the answer without any replacement, [B, n].
        lags: [K] which inputs to replace.
        samples: replacements for each row and lag, drawn with ``seed`` from all valid inputs that differ.
        advance: called with the number of pairs of lag and sample done.

    Returns:
        [samples, B, K] norms of the difference; NaN where a row has no such lag.

    Raises:
        InputError: all inputs are the same, or an answer is not finite.
    """
    flat, rows = sequences.flat, np.arange(len(sequences.lengths))
    kinds = _kinds(sequences)
    rng = np.random.default_rng(seed)
    drawn = np.stack([_replacements(sequences, kinds, lag, samples, rng) for lag in lags], 1)  # [samples, K, B]
    jobs = [(sample, place) for sample in range(samples) for place in range(len(lags))]
    found = np.full((samples, len(rows), len(lags)), np.nan)
    copies = _copies(twin, sequences)
    while jobs:
        batch = jobs[:copies]
        changed = flat.unsqueeze(0).repeat(len(batch), *[1] * flat.dim())
        for copy, (sample, place) in enumerate(batch):
            long = rows[sequences.lengths > lags[place]]
            old = torch.from_numpy(sequences.places(long, lags[place]))
            changed[copy, old] = flat[torch.from_numpy(drawn[sample, place, long])]
        try:
            new = answer(twin, sequences.rebuilt(changed), len(batch))
            if new.shape != (len(batch) * len(said), said.shape[1]):
                raise InputError("the output does not grow with the batch", given=tuple(new.shape))
        except InputError:
            if copies == 1:
                raise
            copies = 1  # a model that takes no other batch than its own
            continue
        if not torch.isfinite(new).all():
            raise InputError("the output is not finite once an input is replaced", expected="finite outputs")
        norms = row_norms((new.unflatten(0, (len(batch), -1)) - said).flatten(0, 1)).reshape(len(batch), -1)
        for (sample, place), values in zip(batch, norms, strict=True):
            found[sample, :, place] = np.where(sequences.lengths > lags[place], values, np.nan)
        advance(len(batch))
        jobs = jobs[len(batch) :]
    return found


def _norms(
    said: Tensor, source: Tensor, steps: int, seed: int, advance: Callable[[int], None]
) -> NDArray[np.float64] | None:
    """The Frobenius norm of d(answer of its row)/d(step of ``source``), for all steps; None if they are not connected.

    Up to `PROBES` numbers of the answer it is exact, beyond that estimated from as many random orthonormal directions.
    """
    if not said.requires_grad:
        return None
    n = said.shape[1]
    directions = torch.eye(n, dtype=said.dtype)
    if n > PROBES:
        drawn = torch.randn(n, PROBES, generator=torch.Generator().manual_seed(seed), dtype=said.dtype)
        directions = torch.linalg.qr(drawn).Q.T * (n / PROBES) ** 0.5
    norms = []
    for place, direction in enumerate(directions.to(said.device)):
        kept = place + 1 < len(directions)
        (gradient,) = torch.autograd.grad((said @ direction).sum(), source, retain_graph=kept, allow_unused=True)
        if gradient is None:
            return None
        norms.append(torch.from_numpy(row_norms(gradient.reshape(steps, -1))))
        advance(1)
    return row_norms(torch.stack(norms, 1))


def _from_the_layers_input(twin: Twin, call: Call) -> tuple[Any, Tensor]:
    """Run the twin with the input of one layer as a leaf; return that input and the answer."""
    leaves = []

    def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = [] if args else [next(name for name in ("x", "input") if name in kwargs)]
        leaf = map_tensors(lambda each: each.detach().clone().requires_grad_(), args[0] if args else kwargs[names[0]])
        leaves.append(leaf)
        return (leaf, *args[1:]), {name: each for name, each in kwargs.items() if name not in names}

    handle = call.layer.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        found = answer(twin)
    finally:
        handle.remove()
    return leaves[0], found


def _kinds(sequences: Sequences) -> NDArray[np.int64]:
    """[N] a number for each input that is the same for equal ones; -1 in padding."""
    valid = sequences.valid
    values = sequences.flat[torch.from_numpy(valid)].detach().reshape(len(valid), -1).cpu().numpy()
    found = np.full(len(sequences.flat), -1)
    found[valid] = np.unique(values, axis=0, return_inverse=True)[1].reshape(-1)
    if found.max(initial=-1) < 1:
        raise InputError(
            "all inputs are the same, so none can be replaced by another",
            given=f"{len(valid)} valid step(s) of equal values",
            expected="data as the model meets it",
        )
    return found


def _replacements(
    sequences: Sequences, kinds: NDArray[np.int64], lag: int, samples: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """[samples, B] where the inputs stand that replace those at a lag: of another kind, each as likely as it occurs."""
    valid, lengths = sequences.valid, sequences.lengths
    found = np.zeros((samples, len(lengths)), np.int64)
    rows = np.flatnonzero(lengths > lag)
    own = kinds[sequences.places(rows, lag)]
    picked = rng.choice(valid, (samples, len(rows)))
    for _ in range(8):
        same = kinds[picked] == own
        picked[same] = rng.choice(valid, int(same.sum()))
    for sample, place in np.argwhere(kinds[picked] == own):  # one kind is nearly all there is
        picked[sample, place] = rng.choice(valid[kinds[valid] != own[place]])
    found[:, rows] = picked
    return found


def _copies(twin: Twin, sequences: Sequences) -> int:
    """How many batches a run may hold."""
    if not twin.takes_any_batch or sequences.call.unbatched:
        return 1
    widths = [
        call.layer.hidden_size * (len(call.layer.cell.gates) + 2) * (1 + call.layer.bidirectional)
        for call in twin.calls
    ]
    features = sequences.flat[0].numel() if len(sequences.flat) else 1
    return max(1, _AT_ONCE // (max(1, len(sequences.flat)) * (features + max(widths))))
