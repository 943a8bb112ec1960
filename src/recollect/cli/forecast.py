"""``recollect forecast``: what comes next."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recollect.cli import options
from recollect.cli.options import check_outputs
from recollect.cli.text import printable

if TYPE_CHECKING:
    import numpy as np

# What a cell begins with that a spreadsheet computes. CSV has no way to say that it is text, and an apostrophe before
# it would be part of the name to whoever else reads the file.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that 'recollect fit' wrote.")]
Data = Annotated[
    str | None,
    typer.Argument(metavar="[DATA]", help="The series up to now; where the training data ended if left out."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the forecast as CSV too.")]


def forecast(
    model: Model,
    data: Data = None,
    target: options.Target = None,
    time: options.Time = None,
    fill: options.FillMissing = None,
    output: Output = None,
) -> None:
    """Forecast the rows that follow a series.

    Without DATA the forecast goes on where the training data ended. With DATA it follows the last row of
    that series; the target is the column that the model was trained on, unless --target says otherwise.

    \b
    Example:
      recollect fit sunspots --horizon 11 --epochs 10 -o sunspots.safetensors
      recollect forecast sunspots.safetensors
      recollect forecast sunspots.safetensors sunspots -o forecast.csv
    """
    from rich.table import Table

    from recollect._files import write_atomically
    from recollect.cli.terminal import Terminal
    from recollect.datasets import read_series
    from recollect.estimators import Forecaster, future_times

    check_outputs(output, inputs=[model, data])
    fitted = Forecaster.load(model)
    if data is None:
        values, past = fitted.predict(), fitted.time_
    else:
        series = read_series(data, target or fitted.name_, time=time, fill=fill)
        values, past = fitted.predict(series), series.time
    times = future_times(past, len(values))
    heading = "step" if times is None else "time"
    labels = [str(step) for step in range(1, len(values) + 1)] if times is None else _labels(times)

    table = Table(heading)
    table.add_column(printable(fitted.name_), justify="right")
    for label, value in zip(labels, values, strict=True):
        table.add_row(label, f"{value:.6g}")
    Terminal().print(table)
    if times is None:
        typer.echo("The times do not say how they go on, so steps are counted from the last row.")
    if output is not None:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([heading, fitted.name_])
        writer.writerows(zip(labels, (repr(float(value)) for value in values), strict=True))
        write_atomically(output, text.getvalue())
        typer.echo(f"Wrote {output}")
        if fitted.name_.startswith(_FORMULA):
            name = printable(fitted.name_)
            typer.echo(f"A spreadsheet will take the name of the column, {name}, for a formula.", err=True)


def _labels(times: np.ndarray) -> list[str]:
    """Times as text: dates where all are at midnight, no more digits than they need otherwise."""
    if times.dtype.kind != "M":
        return [str(time) for time in times]
    whole = [unit for unit in ("D", "m", "s") if (times.astype(f"datetime64[{unit}]") == times).all()]
    return [str(time) for time in times.astype(f"datetime64[{whole[0] if whole else 'us'}]")]
