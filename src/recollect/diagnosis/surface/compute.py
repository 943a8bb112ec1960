"""Compute the loss over a plane through the present weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recollect.diagnosis.progress import progress_bar
from recollect.diagnosis.runs.twin import apart_from_the_caller
from recollect.diagnosis.surface import cliffs, descent, plane
from recollect.diagnosis.surface.landscape import Landscape
from recollect.diagnosis.surface.result import ErrorSurface
from recollect.errors import InputError
from recollect.training._arguments import positive_limit, whole_number


def error_surface(
    model: nn.Module,
    x: Tensor | PackedSequence | tuple[Any, ...],
    target: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    lengths: Any = None,
    directions: str | Sequence[Mapping[str, Tensor]] = "auto",
    points: int = 41,
    radius: float = 1.0,
    ranges: Sequence[Sequence[float]] | None = None,
    path: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    start: Sequence[float] | None = None,
    steps: int = 40,
    learning_rate: float | None = None,
    max_norm: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ErrorSurface:
    """Compute the loss over a plane through the present weights of a model.

    The loss is the one that training would show: as `diagnose` has it, but a mean over rows stays a mean. It is
    computed on a copy in eval mode and float64, all rows at once at each point; the model, its gradients and the
    random state stay as they are. A point where the loss is not finite stays so in the result.

    Three kinds of planes are at hand:

    - ``"unit"``: the recurrent weight and the bias of a network with a single recurrent unit, as they are (Pascanu,
      Mikolov and Bengio 2013, figure 6); the bias is the sum of the layer's two.
    - ``"path"``: the two directions in which ``path`` moves most, in distances from the present weights.
    - ``"random"``: two random directions at right angles, each filter of the norm of the model's own (Li et al. 2018);
      a coordinate of 1 is a change as large as the weights. They go through parameters that ask for a gradient.
      Training hardly shows on such a plane: two random directions know nothing of its own.

    ``"auto"`` takes the first that there is. Gradient descent within the plane, on the two coordinates by themselves,
    shows how training moves on it, without clipping and with.

    Args:
        model, x, target, loss, lengths: as for `diagnose`; some tens of rows are enough to see a surface.
        directions: which plane; or two directions of your own, each a dict from names of parameters to tensors,
            whose multiples the coordinates are.
        points: of the grid, along each axis.
        radius: how far the grid goes from the present weights to each side, in coordinates; for ``"path"``, relative
            to half as much again as the path takes.
        ranges: ``((x_low, x_high), (y_low, y_high))`` of the grid, in place of ``radius``.
        path: weights in the course of a training, each a ``state_dict`` or a vector
            (``torch.nn.utils.parameters_to_vector``); or several such by name, as of trainings with clipping and
            without: all are drawn, and the first makes the plane. Copy weights as you go:
            ``{name: tensor.clone() for name, tensor in model.state_dict().items()}``.
        start: coordinates where descent begins. By default the beginning of the first ``path``; without one, a tenth of
            the plane's width uphill of the steepest place of the cliffs (less where it is flat there); without cliffs,
            the present weights.
        steps: of descent; 0 leaves it out.
        learning_rate: of descent; by default so that a step at the mean slope of the grid, without its cliffs, goes a
            fiftieth of the plane's width.
        max_norm: to which clipping rescales the gradient in the two coordinates; by default that mean slope.
        seed: of the random directions.
        progress: show a bar on standard error while it lasts, if that is a terminal and it lasts over a second.

    Raises:
        InputError: the model cannot be copied or run on ``x``; the loss with the present weights is not finite, or
            changes from call to call; or an argument does not fit.

    Example:
        >>> surface = recollect.diagnosis.error_surface(model, x, target)
        >>> print(surface)
        >>> surface.to_html("surface.html")
    """
    begin = time.perf_counter()
    points = whole_number("points", points, at_least=3)
    steps = whole_number("steps", steps, at_least=0)
    seed = whole_number("seed", seed, at_least=0)
    if not (isinstance(radius, int | float) and 0 < radius < math.inf):
        raise InputError("radius cannot be used", given=f"radius={radius!r}", expected="a finite number above 0")
    for name, value in {"learning_rate": learning_rate, "max_norm": max_norm}.items():
        if value is not None:
            positive_limit(name, value)
    first = None if start is None else _pairs("start", [start])[0]
    bounds = None if ranges is None else _pairs("ranges", ranges, ordered=True)
    bar = progress_bar("error surface", points**2 + 2 * steps, progress)
    with apart_from_the_caller(model), bar as advance:
        land = Landscape(model, x, target, loss, lengths, lambda: advance(1))
        paths = _paths(land, path)
        chosen = _plane(land, directions, paths, radius, seed)
        ends = chosen.ranges if bounds is None else bounds
        xs, ys = (np.linspace(low, high, points) for low, high in ends)
        around = descent.Surroundings(land, chosen)
        grid = np.array([[around.loss(np.array([a, b])) for a in xs] for b in ys])
        if not np.isfinite(grid).any():
            raise InputError(
                "the loss is nowhere finite in these ranges", given=ends, remedy="look nearer to the weights"
            )
        found = cliffs.find(grid)
        brink = descent.find_brink(around, xs, ys, grid, found)
        slope = descent.mean_slope(xs, ys, grid, found)
        rate = descent.learning_rate(xs, ys, slope) if learning_rate is None else float(learning_rate)
        limit = (slope if slope > 0 else math.inf) if max_norm is None else float(max_norm)
        places = {name: chosen.coordinates(vectors) for name, vectors in paths.items()}
        losses = {name: np.array([land(each) for each in vectors]) for name, vectors in paths.items()}
        if steps:
            if first is not None:
                origin = np.array(first)
            elif places:
                origin = next(iter(places.values()))[0]
            elif brink is not None:
                origin = descent.uphill(around, xs, ys, brink, slope)
            else:
                origin = np.array(chosen.centre)
            for name, most in {"descent": math.inf, "descent, clipped": limit}.items():
                places[name], losses[name] = descent.descend(around, origin, steps, rate, most)
        return ErrorSurface(
            axes=chosen.axes,
            x=xs,
            y=ys,
            loss=grid,
            cliffs=found.marks,
            centre=chosen.centre,
            centre_loss=land.here,
            paths=places,
            path_losses=losses,
            learning_rate=rate,
            max_norm=limit,
            height=found.height,
            steepness=_over(found),
            brink=brink,
            seconds=time.perf_counter() - begin,
        )


def _plane(land: Landscape, directions: Any, paths: dict[str, list[Tensor]], radius: float, seed: int) -> plane.Plane:
    unit = plane.unit_layer(land.model)
    if directions == "auto":
        directions = "unit" if unit else "path" if paths else "random"
    if directions == "unit":
        if unit is None:
            raise InputError(
                'directions="unit" is for a network with a single recurrent unit',
                given="a network without one",
                expected="one recurrent layer of one level, direction, unit and gate, with biases",
                remedy='directions="random"',
            )
        return plane.unit_plane(land.weights, unit[0], radius)
    if directions == "path":
        if not paths:
            raise InputError('directions="path" needs a path', remedy="pass path=, a list of state_dicts")
        return plane.path_plane(land.weights, next(iter(paths.values())), radius, seed)
    if directions == "random":
        return plane.random_plane(land.weights, land.moving, radius, seed)
    return plane.given_plane(land.weights, directions, radius)


def _paths(land: Landscape, path: Any) -> dict[str, list[Tensor]]:
    if path is None:
        return {}
    several = path if isinstance(path, Mapping) else {"training": path}
    if isinstance(path, Tensor) and path.dim() != 2:
        raise InputError("path cannot be used", given=f"shape {tuple(path.shape)}", expected="[steps, parameters]")
    read = {
        str(name): [land.weights.read(f"step {step} of {name}", each) for step, each in enumerate(steps)]
        for name, steps in several.items()
    }
    taken = [name for name, steps in read.items() if not steps or name in ("surface", "descent", "descent, clipped")]
    if taken or not read:
        raise InputError(
            "path cannot be used",
            given=f"paths {list(read)} of {[len(each) for each in read.values()]} steps",
            expected="at least one step in each, and none named as those that are computed",
        )
    return read


def _pairs(name: str, value: Any, *, ordered: bool = False) -> list[tuple[float, float]]:
    try:
        pairs = [(float(first), float(second)) for first, second in value]
    except (TypeError, ValueError):
        pairs = []
    good = pairs and all(math.isfinite(each) for pair in pairs for each in pair)
    if not good or (ordered and (len(pairs) != 2 or any(low >= high for low, high in pairs))):
        expected = "((x_low, x_high), (y_low, y_high))" if ordered else "two finite coordinates"
        raise InputError(f"{name} cannot be used", given=f"{name}={value!r}", expected=expected)
    return pairs


def _over(found: cliffs.Cliffs) -> float:
    return found.slope / found.median if found.median > 0 else math.inf if found.slope > 0 else 0.0
