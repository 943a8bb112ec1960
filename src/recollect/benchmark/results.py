"""What was measured: one row per subject and shape, and what was not, by name."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recollect._files import write_atomically
from recollect.benchmark.subject import Shape, Subject, Trial
from recollect.benchmark.timing import Pair, middle_half
from recollect.errors import DataError


@dataclass(frozen=True)
class Row:
    """One subject at one shape; either ``refused`` says why there is no figure, or all others are there.

    Attributes:
        title, peer, mode, section, unit: of the `Subject`.
        shape: B, I, H, T.
        ratio: median of pairwise ratios; peer's time / ours, or for a cost ours / our plain layer's, per unit.
        low, high: the middle half of those ratios.
        seconds, peer_seconds: medians per unit.
        gflops: of ours; a multiply-add counts two.
        percent_of_peak: the same of the machine's multiply-add peak.
        pairs: how many runs of each.
    """

    title: str
    peer: str
    mode: str
    section: str
    unit: str
    shape: Shape
    refused: str | None = None
    ratio: float = 0.0
    low: float = 0.0
    high: float = 0.0
    seconds: float = 0.0
    peer_seconds: float = 0.0
    gflops: float = 0.0
    percent_of_peak: float = 0.0
    pairs: int = 0

    @property
    def undecided(self) -> bool:
        """Whether the middle half of the pairs holds 1: the noise is wider than the difference."""
        return self.refused is None and self.low <= 1 <= self.high


@dataclass
class Results:
    """A whole run.

    Attributes:
        machine: what the figures depend on.
        rows: what was measured, in order.
        skipped: titles of subjects whose peer is not there -> why, and how to get it.
        left_out: title, mode and shape of what there was no time for.
    """

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def set_peak(self, gflops: float) -> None:
        """Name the machine's multiply-add peak, and give every row its share of it."""
        self.machine["fma_peak_gflops"] = _round(gflops)
        self.rows = [replace(row, percent_of_peak=_round(100 * row.gflops / gflops)) for row in self.rows]

    def to_json(self) -> str:
        """The same as indented JSON; `read` takes it back."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        write_atomically(path, self.to_json())


def read(path: Path) -> Results:
    """Read what `Results.save` wrote.

    Raises:
        DataError: it is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**{**row, "shape": Shape(*row["shape"])}) for row in found.pop("rows")]
        return Results(rows=rows, **found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} is no file of results", given=error, expected="what `recollect bench` or `make bench` wrote"
        ) from error


def heading(subject: Subject, shape: Shape) -> Row:
    """A row without figures."""
    return Row(subject.title, subject.peer, subject.mode, subject.section, subject.unit, shape)


def figures(subject: Subject, trial: Trial, pair: Pair) -> dict[str, Any]:
    """The numbers of a row, but for the share of the peak, which is known at the end."""
    scale = trial.work[0] / trial.work[1]
    ratios = [ratio * scale for ratio in pair.ratios()]
    if subject.is_cost:
        ratios = [1 / ratio for ratio in ratios]
    low, ratio, high = middle_half(ratios)
    ours, peer = statistics.median(pair.ours), statistics.median(pair.peer)
    gflops = 2 * trial.multiply_adds / ours / 1e9
    return {
        "ratio": _round(ratio),
        "low": _round(low),
        "high": _round(high),
        "seconds": _round(ours / trial.work[0]),
        "peer_seconds": _round(peer / trial.work[1]),
        "gflops": _round(gflops),
        "pairs": len(pair.ours),
    }


def geometric_mean(rows: Sequence[Row]) -> float | None:
    """Of the ratios; None where one was refused, since a mean of the others would flatter."""
    if not rows or any(row.refused for row in rows):
        return None
    return statistics.geometric_mean(row.ratio for row in rows)


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Title, mode and the rows of each subject, in order."""
    for title, mode in dict.fromkeys((row.title, row.mode) for row in rows):
        yield title, mode, [row for row in rows if (row.title, row.mode) == (title, mode)]


def _round(value: float) -> float:
    return float(f"{value:.6g}")
