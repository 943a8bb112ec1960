"""Arguments and options that several commands share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from recollect.cli.text import as_text
from recollect.errors import InputError


class Fill(StrEnum):
    """Ways to fill missing values."""

    linear = "linear"
    forward = "forward"


Data = Annotated[str, typer.Argument(metavar="DATA", help="A CSV or Parquet file, or the name of an embedded series.")]
Target = Annotated[
    str | None,
    typer.Option(metavar="COL", callback=as_text, help="Column with the values; needed where several hold numbers."),
]
Time = Annotated[
    str | None,
    typer.Option(metavar="COL", callback=as_text, help="Column with the times; found by its name if left out."),
]
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


def check_outputs(*outputs: Path | None, inputs: Sequence[str | Path | None] = ()) -> None:
    """Refuse outputs that cannot be written or would take the place of something else, before any work is done.

    Args:
        outputs: the files to write; None where none is asked for.
        inputs: the files to read; None, and what is no file, such as the name of an embedded series, is passed over.

    Raises:
        InputError: an output is a folder or cannot be written, is one of the inputs (by whatever name, also through a
            link), or is another output.
        OSError: an output cannot be looked at, such as one whose name is too long.
    """
    given = [output for output in outputs if output is not None]
    for place, output in enumerate(given):
        _require_writable(output)
        for source in inputs:
            if source is not None and os.path.isfile(source) and output.exists() and os.path.samefile(source, output):
                raise InputError(
                    f"{output} would take the place of what is read",
                    given=f"the same file as {source}",
                    remedy="choose another path to write to",
                )
        for other in given[:place]:
            if os.path.realpath(output) == os.path.realpath(other):
                raise InputError(
                    f"{output} would be written twice", given=f"the same file as {other}", remedy="choose two paths"
                )


def _require_writable(path: Path) -> None:
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
    with contextlib.suppress(FileNotFoundError):
        path.stat()  # a name that is too long, or a link that leads to itself
        if not os.access(path, os.W_OK):
            raise InputError(
                f"{path} cannot be written",
                given="a file that may only be read",
                remedy="change its permissions, or choose another path",
            )
