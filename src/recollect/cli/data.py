"""``recollect datasets``: the series that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="The series to write; lists all if left out.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="CSV file to write.", show_default="NAME.csv"),
]


def datasets(name: Name = None, output: Output = None) -> None:
    """List the embedded series, or write one as CSV.

    \b
    Example:
      recollect datasets
      recollect datasets co2_monthly -o co2.csv
    """
    from rich.table import Table

    from recollect import datasets as embedded
    from recollect.cli.terminal import Terminal

    if name is not None:
        path = embedded.write(name, output or Path(f"{name}.csv"))
        typer.echo(f"Wrote {path}")
        return
    if output is not None:
        raise typer.BadParameter("say which series to write, such as: recollect datasets sunspots -o FILE")
    table = Table("name", "rows", "season", "what it is", "source")
    for each in embedded.names():
        series = embedded.load(each)
        season = "" if series.season_length is None else str(series.season_length)
        table.add_row(each, str(len(series)), season, series.description, series.source)
    Terminal().print(table)
