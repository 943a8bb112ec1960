"""Several diagnoses side by side: cells, or one model before and after training."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass

from recollect._files import write_atomically
from recollect.diagnosis import report
from recollect.diagnosis.diagnosis import Diagnosis
from recollect.errors import InputError

# One scale for all lines in the terminal.
_DECADES = 8


@dataclass(frozen=True, eq=False)
class Comparison:
    """Diagnoses in groups; each group becomes one chart.

    Attributes:
        title: what is compared.
        groups: title of a group -> name -> diagnosis.
        tables: further tables for the page, by caption: rows of cells, the first row the head.
    """

    title: str
    groups: Mapping[str, Mapping[str, Diagnosis]]
    tables: Mapping[str, list[list[str]]]

    def __str__(self) -> str:
        width = max(len(name) for group in self.groups.values() for name in group)
        lines = []
        for title, group in self.groups.items():
            lines.append(f"{title}: |dL/dh| by lag, lag 0 first (log scale, {_DECADES} decades)")
            for name, each in group.items():
                steps = len(each.grad_norm_by_lag)
                reach = f"{'at least ' if each.censored else ''}{each.gradient_horizon} of {steps} steps"
                lines.append(
                    f"  {name:<{width}}  {report.sparkline(each.grad_norm_by_lag, 40, _DECADES)}  horizon {reach}"
                )
        return "\n".join(lines)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison as one HTML file that needs nothing else and no network.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        figures = "".join(
            report.figure(
                title,
                {name: each.grad_norm_by_lag for name, each in group.items()},
                {name: each.gradient_horizon for name, each in group.items()},
            )
            for title, group in self.groups.items()
        )
        numbers = []
        for title, group in self.groups.items():
            for name, each in group.items():
                steps = len(each.grad_norm_by_lag)
                numbers.append(
                    [
                        f"{name}, {title}",
                        each.findings[0].kind,
                        f"{each.gradient_horizon} of {steps} steps",
                        f"{each.growth_per_step:.4g}",
                    ]
                )
        body = (
            f"<header class=info><h1>{html.escape(self.title)}</h1></header>"
            + "".join(report.table(caption, rows, head) for caption, (head, *rows) in self.tables.items())
            + f'<h2>Gradient by lag</h2>{report.HOW_TO_READ}<div class="figures">{figures}</div>'
            + "<h2>Numbers</h2>"
            + report.table("Gradient back through time", numbers, ["", "finding", "horizon", "growth per step"])
        )
        write_atomically(path, report.page(self.title, body))


def compare(
    title: str,
    groups: Mapping[str, Mapping[str, Diagnosis]],
    tables: Mapping[str, list[list[str]]] | None = None,
) -> Comparison:
    """Put diagnoses side by side.

    Args:
        title: what is compared.
        groups: title of a group -> name -> diagnosis, such as
            ``{"before training": {"LSTM": a, "RNN": b}, "after training": {...}}``.
        tables: further tables for the page, by caption: rows of cells, the first row the head.

    Raises:
        InputError: there is nothing to compare.

    Example:
        >>> print(compare("LSTM and GRU", {"fresh": {"LSTM": recollect.diagnose(lstm, x), "GRU": ...}}))
    """
    if not groups or not all(groups.values()):
        raise InputError("there is nothing to compare", given=dict(groups), expected="a diagnosis in every group")
    return Comparison(title, groups, tables or {})
