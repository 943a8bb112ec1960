"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from recollect.errors import InputError


class Fill(StrEnum):
    """Ways to fill missing values."""

    linear = "linear"
    forward = "forward"


Data = Annotated[str, typer.Argument(metavar="DATA", help="A CSV or Parquet file, or the name of an embedded series.")]
Target = Annotated[
    str | None,
    typer.Option(metavar="COL", help="Column with the values; needed where several hold numbers."),
]
Time = Annotated[str | None, typer.Option(metavar="COL", help="Column with the times; found by its name if left out.")]
FillMissing = Annotated[
    Fill | None,
    typer.Option("--fill", help="Fill missing values: a straight line, or the last one repeated."),
]
Horizon = Annotated[int, typer.Option(metavar="N", help="Rows to forecast.")]
ContextLength = Annotated[
    int | None,
    typer.Option(metavar="N", help="Rows a forecast looks back on.", show_default="three seasons, or 24"),
]
CellName = Annotated[str, typer.Option("--cell", help="Name of a cell, as for 'recollect describe'.")]
HiddenSize = Annotated[int, typer.Option(metavar="N", help="Units of the recurrent layer.")]
Epochs = Annotated[int, typer.Option(metavar="N", help="Passes over the data, at most.")]
Season = Annotated[
    int | None,
    typer.Option("--season-length", metavar="N", help="Rows in a season.", show_default="told from the times"),
]
TestSize = Annotated[
    int | None,
    typer.Option(metavar="N", help="Rows at the end held out for the table.", show_default="a fifth"),
]
Seed = Annotated[int, typer.Option(metavar="N", help="The same seed gives the same forecast.")]


def require_writable(path: Path) -> None:
    """Refuse an output that cannot be written, before the work that it is for.

    Raises:
        InputError: ``path`` is a folder, or its folder does not exist or cannot be written.
    """
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path} is a folder", expected="the path of a file to write")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        exists = "cannot be written to" if folder.is_dir() else "does not exist"
        raise InputError(
            f"{path} cannot be written",
            given=f"the folder {folder} {exists}",
            remedy="create the folder, or choose another path",
        )
