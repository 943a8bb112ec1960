"""A plane through the present weights of a model, and how to choose one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recollect.diagnosis.runs.call import join
from recollect.diagnosis.surface.weights import Weights
from recollect.errors import InputError
from recollect.nn import Recurrent

Range = tuple[float, float]

# A second principal direction with less of the first one's length than this is rounding.
_STRAIGHT = 1e-8
# A path fills so much of the plane that is drawn around it, and is at least so many times as long as wide there.
_FILLED, _LONGEST = 2 / 3, 4.0


@dataclass(frozen=True, eq=False)
class Plane:
    """Two directions through the present weights.

    Attributes:
        axes: what the two coordinates are.
        origin: [P] the present weights.
        centre: their coordinates.
        directions: [2, P] what one unit of each coordinate adds to the weights.
        covectors: [2, P] what reads the coordinates off weights: centre + covectors (weights - origin).
        ranges: of both coordinates, as far as the plane is drawn.
    """

    axes: tuple[str, str]
    origin: Tensor
    centre: tuple[float, float]
    directions: Tensor
    covectors: Tensor
    ranges: tuple[Range, Range]

    def at(self, place: Sequence[float] | NDArray[np.float64]) -> Tensor:
        """[P] the weights at two coordinates."""
        first, second = (float(each) - middle for each, middle in zip(place, self.centre, strict=True))
        return self.origin + first * self.directions[0] + second * self.directions[1]

    def coordinates(self, vectors: Sequence[Tensor]) -> NDArray[np.float64]:
        """[n, 2] of weights [P] each; what lies beside the plane is projected onto it."""
        return np.array([(self.covectors @ (each - self.origin)).numpy() for each in vectors]) + self.centre

    def gradient(self, gradient: Tensor) -> NDArray[np.float64]:
        """[2] the gradient in the plane of one [P] in all weights."""
        return (self.directions @ gradient).numpy()


def random_plane(weights: Weights, moving: Sequence[bool], radius: float, seed: int) -> Plane:
    """Two random directions, normalised filter by filter and at right angles.

    A filter is what makes one number from a layer's input: a row of a weight matrix. Each direction's filter has the
    norm of the model's own, so a coordinate of 1 changes the weights by as much as they are, in every filter, and
    surfaces of networks with weights of different scale can be compared (H. Li, Z. Xu, G. Taylor, C. Studer,
    T. Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS 2018). There, biases stay as they are. Here
    a bias is one filter as a whole, as is any vector and any matrix whose rows are single numbers: the bias of a
    recurrent layer acts at every step and decides, as that of a forget gate, how the gradient fares.

    The directions are at right angles in each filter. One that is a single number can only be in one of the two.

    Args:
        weights: of the model.
        moving: which of its tensors a direction may change.
        radius: how far the plane is drawn to all sides.
        seed: of the directions.

    Raises:
        InputError: all weights are 0, or there is only one.
    """
    generator = torch.Generator().manual_seed(seed)
    origin = weights.get()
    found: list[list[Tensor]] = []
    single = 0
    for tensor, moves in zip(weights.split(origin), moving, strict=True):
        filters = tensor.flatten(1) if tensor.dim() > 1 and tensor[:1].numel() > 1 else tensor.reshape(1, -1)
        drawn = torch.randn((2, *filters.shape), generator=generator, dtype=torch.float64)
        if filters.numel() == 1:
            drawn[1 - single % 2] = 0
            single += 1
        else:
            first = drawn[0] / drawn[0].norm(dim=1, keepdim=True)
            drawn[1] -= (drawn[1] * first).sum(1, keepdim=True) * first
        norms = drawn.norm(dim=2, keepdim=True)
        scaled = drawn * torch.where(norms > 0, filters.norm(dim=1, keepdim=True) / norms, 0)
        found.append([each.flatten() if moves else torch.zeros_like(each).flatten() for each in scaled])
    directions = torch.stack([torch.cat(each) for each in zip(*found, strict=True)])
    return _span(("random direction 1", "random direction 2"), origin, directions, ((-radius, radius),) * 2)


def unit_layer(model: nn.Module) -> tuple[str, Recurrent] | None:
    """The path and layer of a model whose only recurrent layer is a single unit with one gate and biases."""
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, Recurrent)]
    if len(layers) != 1:
        return None
    path, layer = layers[0]
    plain = layer.num_layers == 1 and not layer.bidirectional and not layer.proj_size and layer.bias
    return (path, layer) if plain and layer.hidden_size == 1 and len(layer.cell.gates) == 1 else None


def unit_plane(weights: Weights, path: str, radius: float) -> Plane:
    """The recurrent weight w and the bias b of a single unit, as they are.

    So in R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013,
    figure 6. b is the sum of the layer's two biases, and a step along it changes b_ih.
    """
    origin = weights.get()

    def only(name: str) -> Tensor:
        named = join(path, name)
        return torch.cat(
            [torch.full((tensor.numel(),), float(each == named)) for each, tensor in weights.tensors.items()]
        ).double()

    w, b = only("weight_hh_l0"), only("bias_ih_l0")
    directions, covectors = torch.stack([w, b]), torch.stack([w, b + only("bias_hh_l0")])
    x, y = (covectors @ origin).tolist()
    ranges = (x - radius, x + radius), (y - radius, y + radius)
    return Plane(("recurrent weight w", "bias b"), origin, (x, y), directions, covectors, ranges)


def path_plane(weights: Weights, path: Sequence[Tensor], radius: float, seed: int) -> Plane:
    """The two directions in which a path of weights moves most, seen from the present weights.

    These are the first two principal directions of path - present weights, each of norm 1, so that coordinates are
    distances (as in Li et al. 2018, section 7). A path on a straight line leaves the second open: it is random then.

    Args:
        weights: of the model.
        path: [P] each.
        radius: 1 draws half as much again as the path fills.
        seed: of a random direction.

    Raises:
        InputError: the path stays at the present weights.
    """
    origin = weights.get()
    moved = torch.stack([each - origin for each in path])
    _, lengths, rows = torch.linalg.svd(moved, full_matrices=False)
    if not lengths[0] > 0:
        raise InputError("the path never leaves the present weights", given=f"{len(path)} equal points")
    shares = lengths**2 / (lengths**2).sum()
    axes = [f"principal direction {place + 1} ({share:.1%})" for place, share in enumerate(shares[:2])]
    if len(lengths) < 2 or lengths[1] <= _STRAIGHT * lengths[0]:
        other = torch.randn(len(origin), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other -= (other @ rows[0]) * rows[0]
        rows, axes = torch.stack([rows[0], other / other.norm()]), [axes[0], "random direction"]
    # An eigenvector has no sign of its own: the path shall come from the left, and from below.
    farthest = (moved @ rows[:2].T).numpy()
    farthest = farthest[np.abs(farthest).argmax(0), [0, 1]]
    directions = rows[:2] * torch.from_numpy(np.where(farthest > 0, -1.0, 1.0))[:, None]
    places = np.concatenate([(moved @ directions.T).numpy(), np.zeros((1, 2))])
    extent = np.ptp(places, axis=0)
    reach = radius * np.maximum(extent, extent.max() / _LONGEST) / (2 * _FILLED)
    middle = (places.max(0) + places.min(0)) / 2
    ranges = tuple((float(low), float(high)) for low, high in zip(middle - reach, middle + reach, strict=True))
    return _span((axes[0], axes[1]), origin, directions, ranges)


def given_plane(weights: Weights, pair: Any, radius: float) -> Plane:
    """Two directions given as name -> tensor; a parameter that is not named stays as it is.

    Raises:
        InputError: it is not a pair, does not fit the model, or spans no plane.
    """
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(
            "directions cannot be used",
            given=repr(pair) if isinstance(pair, str) else type(pair).__name__,
            expected='"auto", "random", "unit", "path", or a pair of dicts from names of parameters to tensors',
        )
    directions = torch.stack([weights.read("a direction", each, missing=True) for each in pair])
    return _span(("direction 1", "direction 2"), weights.get(), directions, ((-radius, radius),) * 2)


def _span(axes: tuple[str, str], origin: Tensor, directions: Tensor, ranges: Any) -> Plane:
    """A plane whose coordinates are multiples of two directions, at whatever angle."""
    norms = directions.norm(dim=1)
    if not (norms > 0).all() or torch.linalg.svdvals(directions / norms[:, None])[1] < _STRAIGHT:
        raise InputError(
            "two directions are needed that are neither 0 nor the same",
            given=f"norms {norms.tolist()} in {len(origin)} weights",
            remedy="pass directions=, a pair of dicts from names of parameters to tensors",
        )
    return Plane(axes, origin, (0.0, 0.0), directions, torch.linalg.pinv(directions).T, ranges)
