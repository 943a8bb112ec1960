"""The LSTM against JAX: `lax.scan` under `jit`.

Of the ways to write it, this was the quickest that was tried: the input's product inside the scan, weights
stored as [I, 4H] and [H, 4H], four steps unrolled for inference and none for training.
"""

# Peers need not be installed.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch

import recollect
from recollect.benchmark.layers import MODES, SHAPES
from recollect.benchmark.parity import difference, infer, results, train
from recollect.benchmark.subject import PASSES, Mode, Shape, Subject, Trial, multiply_adds

_UNROLL = {"inference": 4, "training": 1}


def against_jax() -> list[Subject]:
    """The LSTM in both modes; in training the gradients of all weights, of x and of both initial states."""
    return [
        Subject("LSTM", "JAX", mode, "speed", SHAPES, partial(_prepare, mode), needs=("jax", "jaxlib"),
                setup=1.5, step_seconds=20e-6)
        for mode in MODES
    ]  # fmt: skip


def limit_threads(threads: int) -> None:
    """Give JAX as many threads as torch has; only before its first computation of a process.

    XLA's CPU client reads the size of its pool of workers from the environment, once. Whether the calling thread
    computes beside them is up to XLA: that much more than torch JAX may use.
    """
    os.environ["PJRT_NPROC"] = os.environ["NPROC"] = str(threads)


def _lstm(unroll: int, weights: Any, x: Any, h: Any, c: Any) -> Any:
    import jax
    from jax import lax
    from jax import numpy as jnp

    w_ih, w_hh, b_ih, b_hh = weights

    def step(states: Any, inputs: Any) -> Any:
        h, c = states
        i, f, g, o = jnp.split(inputs @ w_ih + h @ w_hh + (b_ih + b_hh), 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    states, y = lax.scan(step, (h, c), x, unroll=unroll)
    return y, *states


def _prepare(mode: Mode, shape: Shape) -> Trial:
    import jax
    from jax import numpy as jnp

    batch, inputs, hidden, steps = shape
    limit_threads(torch.get_num_threads())
    layer = recollect.nn.LSTM(inputs, hidden)
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    h, c = (torch.randn(1, batch, hidden, requires_grad=True) for _ in range(2))
    grad = torch.randn(steps, batch, hidden)
    leaves = [*layer.parameters(), x, h, c]

    def theirs(tensor: torch.Tensor) -> Any:
        return jnp.asarray(tensor.detach().numpy())

    weights = tuple(theirs(each.t() if each.dim() == 2 else each) for each in layer.parameters())
    arguments = (weights, theirs(x), theirs(h[0]), theirs(c[0]))
    model = partial(_lstm, _UNROLL[mode])
    counts = multiply_adds(4, shape) * PASSES[mode], (float(steps), float(steps))

    def everything() -> tuple[torch.Tensor, ...]:
        y, (last_h, last_c) = layer(x, (h, c))
        return y, last_h[0], last_c[0]

    def output() -> tuple[torch.Tensor]:
        return (layer(x, (h, c))[0],)

    if mode == "inference":
        run = jax.jit(model)
        found = [each.detach() for each in everything()]
        apart = difference(found, [_ours(each) for each in run(*arguments)])
        return Trial(infer(output), lambda: jax.block_until_ready(run(*arguments)), apart, *counts)

    sent = theirs(grad)
    learn = jax.jit(jax.value_and_grad(lambda *given: jnp.sum(model(*given)[0] * sent), argnums=(0, 1, 2, 3)))
    y, *found = results(output, leaves, [grad])
    value, gradients = learn(*arguments)
    apart = difference(found, [_like(each, leaf) for each, leaf in zip(_flat(gradients), leaves, strict=True)])
    # The sum may cancel, so it is compared with what its terms amount to.
    apart = max(apart, abs(float(value) - float((y * grad).sum())) / float(y.norm() * grad.norm()))
    return Trial(train(output, leaves, [grad]), lambda: jax.block_until_ready(learn(*arguments)), apart, *counts)


def _flat(gradients: Any) -> list[Any]:
    weights, *others = gradients
    return [*weights, *others]


def _ours(array: Any) -> torch.Tensor:
    import numpy

    return torch.from_numpy(numpy.array(array))


def _like(array: Any, leaf: torch.Tensor) -> torch.Tensor:
    """A gradient of theirs in the layout of ours: weights turned back, states with a layer's axis."""
    found = _ours(array)
    return found.t() if leaf.dim() == 2 else found.reshape(leaf.shape)
