"""Numbers about a gradient on its way back through time."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recollect.diagnosis.runs.unrolled import Unrolled

Curve = NDArray[np.float64]

# A gradient below this share of its value at lag 0 counts as gone.
GONE = 0.01


def grad_norm_by_lag(unrolled: Unrolled, gradients: Tensor) -> Curve:
    """The root mean square over rows of the norm of dL/ds, by lag.

    Args:
        unrolled: the layer and direction.
        gradients: of one of its states, [N, H].

    Returns:
        [T_max] in float64. Lag k counts back from the step that is processed last in each row; only rows
        longer than k count.
    """
    norms = row_norms(gradients)
    return np.array([_root_mean_square(norms[rows]) for rows in unrolled.by_lag()])


def weight_grad_norm_by_lag(unrolled: Unrolled) -> Curve:
    """The norm of what the steps of each lag add to the gradient of W_hh.

    dL/dW_hh is a sum over steps and rows of the products dL/d(rec) h'. The steps that lie k before their row's last
    one add a part G_k, which teaches the weights what happened there; all G_k together are dL/dW_hh.

    Returns:
        [T_max] in float64: the Frobenius norm of G_k. It is 0 where a row began with a state of zeros.
    """
    curve = []
    for rows in unrolled.by_lag():
        gradients, outputs = unrolled.recurrent_gradients[rows], unrolled.before[0][rows]
        scale = gradients.abs().max()
        if not 0 < scale < math.inf:
            curve.append(float(scale))
        else:
            curve.append(float(scale * torch.linalg.matrix_norm((gradients / scale).T @ outputs)))
    return np.array(curve)


def row_norms(rows: Tensor) -> NDArray[np.float64]:
    """Euclidean norms of rows; scaled first, since the square of 1e-170 is no float64."""
    rows = rows.double()
    scale = rows.abs().amax(1)
    usable = (scale > 0) & torch.isfinite(scale)
    shares = rows / torch.where(usable, scale, 1.0).unsqueeze(1)
    return torch.where(usable, scale * torch.linalg.vector_norm(shares, dim=1), scale).cpu().numpy()


def _root_mean_square(values: NDArray[np.float64]) -> float:
    scale = values.max()
    if not 0 < scale < math.inf:
        return float(scale)
    return float(scale * np.sqrt(np.mean((values / scale) ** 2)))


def first_lag(curve: Curve) -> int | None:
    """The first lag with any gradient: 0, except where the loss does not use the last step at all.

    So it is for the state c of an LSTM whose loss sees h only: dL/dc leaves out the way through the same
    step's h, hence it is 0 at lag 0.
    """
    lags = np.flatnonzero(curve > 0)
    return int(lags[0]) if len(lags) else None


def gradient_horizon(curve: Curve) -> tuple[int, bool]:
    """How many steps back the gradient still reaches, and whether the sequence ended before it did.

    It is 1 + the largest lag k with g[k] >= 0.01 g[0]; where g[0] is 0, `first_lag` takes its place; 0
    where there is no gradient at all.
    """
    first = first_lag(curve)
    if first is None:
        return 0, False
    horizon = int(np.flatnonzero(curve >= GONE * curve[first])[-1]) + 1
    return horizon, horizon == len(curve)


def growth_per_step(curve: Curve) -> float:
    """The factor by which the gradient changes per step back in time.

    (g[K] / g[m]) ** (1 / (K - m)), where K is the last lag with g finite and above 0, and m is 1, or 0 if
    T = 2: lag 0 also holds what the loss itself adds. 0.0 if g[1] = 0 or nothing is left after it; inf if
    g[1] is not finite.
    """
    start = 0 if len(curve) == 2 else 1
    if curve[1] == 0:
        return 0.0
    usable = np.flatnonzero(np.isfinite(curve) & (curve > 0))
    last = int(usable[-1]) if len(usable) else 0
    if not math.isfinite(curve[1]) or curve[start] == 0:
        return math.inf
    if last <= start:
        return 0.0 if np.all(np.isfinite(curve)) else math.inf
    # Through logarithms: the quotient itself may leave float64.
    with np.errstate(over="ignore"):
        return float(np.exp((np.log(curve[last]) - np.log(curve[start])) / (last - start)))


def spectral_radius(weight: Tensor) -> float:
    """The largest absolute eigenvalue of a square matrix: what many steps do to the direction that lasts longest."""
    return float(torch.linalg.eigvals(weight.double()).abs().max())


def spectral_norm(weight: Tensor) -> float:
    """The largest singular value of a matrix: the most that a single step can stretch a vector."""
    return float(torch.linalg.matrix_norm(weight.double(), ord=2))
