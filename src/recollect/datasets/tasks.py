"""Synthetic tasks with a known answer."""

from __future__ import annotations

import numpy as np

from recollect.errors import InputError


def adding(n: int, T: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The adding problem: sum two marked numbers of a sequence and forget the rest.

    At each step comes a number, uniform in [0, 1], and a marker. The marker is 1 at two steps, one
    uniform in the first half (steps 0 to T // 2 - 1) and one in the second, and 0 elsewhere. The target
    is the sum of the two marked numbers. Always answering 1 has a mean squared error of 1/6 = 0.167, so
    that a network has learned something only below that.

    Args:
        n: sequences.
        T: steps, at least 2.
        seed: the same seed gives the same arrays.

    Returns:
        ``x`` float32 [n, T, 2] (number, marker) and ``y`` float32 [n, 1].

    Raises:
        InputError: ``n`` < 1 or ``T`` < 2.

    Source: S. Hochreiter and J. Schmidhuber (1997), Long Short-Term Memory, section 5.4; fixed length and
    numbers from [0, 1] as in Q. V. Le, N. Jaitly and G. E. Hinton (2015), A Simple Way to Initialize
    Recurrent Networks of Rectified Linear Units; a marker in each half as in M. Arjovsky, A. Shah and
    Y. Bengio (2016), Unitary Evolution Recurrent Neural Networks.
    """
    _at_least(n=(n, 1), T=(T, 2))
    rng = np.random.default_rng(seed)
    x = np.zeros((n, T, 2), dtype=np.float32)
    x[:, :, 0] = rng.random((n, T), dtype=np.float32)
    rows = np.arange(n)
    first, second = rng.integers(0, T // 2, n), rng.integers(T // 2, T, n)
    x[rows, first, 1] = x[rows, second, 1] = 1
    return x, (x[rows, first, 0] + x[rows, second, 0])[:, None]


def sine_to_cosine(n: int, T: int, seed: int, *, period: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    """One long sine wave and the cosine to predict from it, cut into consecutive chunks.

    The sine alone does not tell the cosine, because its sign depends on whether the wave rises or
    falls: a network needs what it remembers. Chunk i + 1 goes on where chunk i ends, so that a state
    can be carried from chunk to chunk::

        for x_chunk, y_chunk in zip(x, y):  # each [T, 1, 1]
            output, state = layer(x_chunk, detach_state(state))

    Args:
        n: chunks.
        T: steps in a chunk.
        seed: chooses where in its period the wave begins.
        period: steps in one turn of the wave.

    Returns:
        ``x`` and ``y``, both float32 [n, T, 1, 1]: chunk, step, batch of one, one feature.

    Raises:
        InputError: ``n`` or ``T`` < 1, or ``period`` <= 2, which is too few steps to tell a wave.
    """
    _at_least(n=(n, 1), T=(T, 1))
    if not period > 2:
        raise InputError(
            "the period is too short to tell a wave from its samples",
            given=f"period={period}",
            expected="period > 2 steps",
            remedy="choose a longer period",
        )
    start = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    angle = start + 2 * np.pi / period * np.arange(n * T).reshape(n, T, 1, 1)
    return np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)


def _at_least(**sizes: tuple[int, int]) -> None:
    for name, (given, least) in sizes.items():
        if given < least:
            raise InputError(f"{name} is too small", given=f"{name}={given}", expected=f"{name} >= {least}")
