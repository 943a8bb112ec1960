"""An error surface: what was computed, in words, as a picture and as data."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect._files import write_atomically
from recollect.diagnosis import report
from recollect.diagnosis.charts import surface as chart
from recollect.diagnosis.surface.descent import Brink
from recollect.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ErrorSurface:
    """The loss over a plane through the present weights of a model.

    Attributes:
        axes: what the two coordinates are.
        x: [n] the first coordinate of the grid's points.
        y: [n] the second.
        loss: [n, n] the loss at ``(x[column], y[row])``, as it came: infinite or NaN where it is not finite.
        cliffs: bool [n, n], the points on a cliff. From one of its points to the next the loss changes as fast as if it
            went through a fifth of its range in a fortieth of the plane's width, and 10 times as fast as at the median
            (or through two fifths, where all is rugged); or it stops being finite. The range leaves out 1 % of the
            losses at each end.
        centre: coordinates of the present weights, which need not be in the middle.
        centre_loss: with them.
        paths: name -> [steps, 2] coordinates of weights: of a path that was given, projected onto the plane, and of
            "descent" and "descent, clipped" within it.
        path_losses: name -> [steps] the losses along them, those of a given path with its own weights.
        learning_rate, max_norm: of descent; the norm is that of the gradient in the two coordinates.
        height: the largest change of the loss from a point to the next on a cliff; 0 without cliffs, inf where the
            loss stops being finite.
        steepness: that change over the share of the plane's width in which it happens, in median slopes.
        brink: the steepest place of the cliffs and the gradient there; None without cliffs.
        seconds: that it took.
    """

    axes: tuple[str, str]
    x: Array
    y: Array
    loss: Array
    cliffs: NDArray[np.bool_]
    centre: tuple[float, float]
    centre_loss: float
    paths: dict[str, Array]
    path_losses: dict[str, Array]
    learning_rate: float
    max_norm: float
    height: float
    steepness: float
    brink: Brink | None
    seconds: float

    @property
    def jumps(self) -> tuple[float, float] | None:
        """How far a step of descent from the brink goes, without and with clipping; None without cliffs."""
        if self.brink is None:
            return None
        norm = self.brink.norm
        return self.learning_rate * norm, self.learning_rate * min(norm, self.max_norm)

    def __str__(self) -> str:
        finite = self.loss[np.isfinite(self.loss)]
        facts = {"loss": f"{finite.min():.4g} to {finite.max():.4g}; {self.centre_loss:.4g} with the present weights"}
        if finite.size < self.loss.size:
            facts["not finite"] = f"{1 - finite.size / self.loss.size:.1%} of the points"
        facts["cliffs"] = self._cliffs()
        if self.jumps:
            free, clipped = self.jumps
            plane = f"{np.ptp(self.x):.3g} x {np.ptp(self.y):.3g}"
            facts["a step there"] = f"{free:.3g} long, {clipped:.3g} with clipping (the plane: {plane})"
        facts |= {name: _course(losses) for name, losses in self.path_losses.items()}
        facts["learning rate"] = f"{self.learning_rate:.3g}; clipping to a norm of {self.max_norm:.3g}"
        width = max(map(len, facts))
        title = f"Error surface: {self.axes[0]}, {self.axes[1]}; {len(self.x)} x {len(self.y)} points"
        return "\n".join([f"{title}, {self.seconds:.1f} s", *(f"  {each:<{width}}  {facts[each]}" for each in facts)])

    def _cliffs(self) -> str:
        if not self.cliffs.any():
            return "none"
        share = f"{self.cliffs.mean():.1%} of the points"
        if math.isinf(self.height):
            return f"{share}; beside them the loss is not finite"
        return f"{share}; up to {self.height:.3g} from point to point, {self.steepness:.3g} median slopes"

    def to_svg(self) -> str:
        """The picture, as SVG that needs nothing else and takes the colours of a page of ours."""
        return chart.draw(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write picture and numbers as one HTML file that needs nothing else and no network.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        write_atomically(path, report.page("Error surface", f"<h1>Error surface</h1>\n{chart.section(self)}"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the data: all of it as JSON, or losses and paths as a table in CSV, by the name's ending.

        JSON has numbers that are not finite as the texts "nan", "inf" and "-inf", which Python's ``float`` reads. The
        table's columns are ``kind`` ("surface" or the name of a path), ``step`` (of a path), ``x``, ``y``, ``loss`` and
        ``cliff`` (0 or 1, of the surface).

        Raises:
            InputError: the name ends in neither .json nor .csv.
            OSError: the folder does not exist or cannot be written.
        """
        ending = Path(path).suffix.lower()
        if ending not in (".json", ".csv"):
            raise InputError("data is written as JSON or CSV", given=str(path), expected="a name in .json or .csv")
        write_atomically(path, self._json() if ending == ".json" else self._csv())

    def _json(self) -> str:
        data = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        return json.dumps(data, allow_nan=False) + "\n"

    def _csv(self) -> str:
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["kind", "step", "x", "y", "loss", "cliff"])
        for row, y in enumerate(self.y.tolist()):
            for column, x in enumerate(self.x.tolist()):
                table.writerow(["surface", "", x, y, float(self.loss[row, column]), int(self.cliffs[row, column])])
        for name, places in self.paths.items():
            for step, ((x, y), loss) in enumerate(zip(places.tolist(), self.path_losses[name].tolist(), strict=True)):
                table.writerow([name, step, x, y, loss, ""])
        return out.getvalue()


def _course(losses: Array) -> str:
    """A path's losses in a few words."""
    finite = np.isfinite(losses)
    best = f" (at best {losses[finite].min():.4g})" if finite.any() else ""
    return f"loss {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses) - 1} steps{best}"


def _plain(value: Any) -> Any:
    """Plain data for JSON."""
    if isinstance(value, Brink):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
