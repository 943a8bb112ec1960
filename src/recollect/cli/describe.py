"""``recollect describe``: a cell's equations and its picture, and its numbers where a model has run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recollect.cli import options
from recollect.cli.options import check_outputs
from recollect.cli.text import as_text

if TYPE_CHECKING:
    from torch import nn

    from recollect.cells import Cell
    from recollect.diagnosis import Description
    from recollect.estimators import Forecaster

Name = Annotated[
    str | None,
    typer.Argument(metavar="[CELL]", help="Name of a cell, or FILE.py:NAME for your own; lists all if left out."),
]
Model = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Describe the cell of a file that 'recollect fit' or save wrote.")
]
Data = Annotated[
    str | None, typer.Option(metavar="DATA", help="Show the model's numbers in the last window of this series.")
]
Step = Annotated[int, typer.Option(metavar="N", help="Which step of the window, from 0; -1 is the last.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write drawings and equations as a page.")]
Latex = Annotated[bool, typer.Option("--latex", help="Print the equations alone, in LaTeX.")]
InputSize = Annotated[int, typer.Option(min=1, metavar="N", help="Features of the input, for the count.")]
HiddenSize = Annotated[int, typer.Option(min=1, metavar="N", help="Units, for the count.")]


def describe(
    cell: Name = None,
    model: Model = None,
    data: Data = None,
    step: Step = -1,
    html: Html = None,
    latex: Latex = False,
    input_size: InputSize = 1,
    hidden_size: HiddenSize = 64,
    target: options.Target = None,
    time: options.Time = None,
    fill: options.FillMissing = None,
) -> None:
    """Show a cell's equations and draw it: one step, and unrolled over time.

    With a model and data, the drawing has its numbers: gates, states and the gradients of the squared error at
    one step of the last window. The page can be opened offline.

    \b
    Example:
      recollect describe gru --input-size 10 --hidden-size 128
      recollect describe lstm --html lstm.html
      recollect describe peephole_lstm --latex
      recollect fit sunspots --horizon 11 --epochs 10 -o sunspots.safetensors
      recollect describe --model sunspots.safetensors --data sunspots --step 20 --html step.html
    """
    from recollect import cells
    from recollect.diagnosis import Description

    if (cell is not None) + (model is not None) > 1:
        raise typer.BadParameter("give the name of a cell or --model, not both")
    if data is not None and model is None:
        raise typer.BadParameter("--data needs --model FILE, whose numbers are then shown")
    path, inside = _file_of(cell)
    check_outputs(html, inputs=[path, model, data])
    if model is not None:
        found = _of_model(model) if data is None else _at_step(model, data, step, target, time, fill)
    elif cell is not None:
        found = Description(_cell(cell, path, inside), input_size, hidden_size)
    else:
        for name in cells.__all__:
            typer.echo(f"{name:14} {Description(cells.by_name(name)).summary}")
        return
    if latex:
        from recollect.graph.latex import equations

        typer.echo("\n".join(equations(found.cell.graph)))
    else:
        typer.echo(str(found))
    if html is not None:
        found.to_html(html)
        typer.echo(f"Wrote {html}", err=latex)


def _file_of(cell: str | None) -> tuple[Path | None, str]:
    """The file of FILE.py:NAME or FILE.py, and the name in it; None where ``cell`` is the name of one of ours."""
    path, _, inside = cell.rpartition(":") if cell and ".py:" in cell else (cell or "", "", "")
    return (Path(path), as_text(inside) or "") if path.endswith(".py") else (None, "")


def _cell(name: str, path: Path | None, inside: str) -> Cell:
    from recollect import cells
    from recollect.cli.cell_file import cell_from_file

    return cells.by_name(name) if path is None else cell_from_file(path, inside)


def _of_model(path: Path) -> Description:
    from recollect.diagnosis import describe
    from recollect.estimators import Forecaster

    model = _load(path)
    return describe(model.network_ if isinstance(model, Forecaster) else model)


def _at_step(
    path: Path, data: str, step: int, target: str | None, time: str | None, fill: options.Fill | None
) -> Description:
    from recollect.datasets import read_series
    from recollect.diagnosis import describe
    from recollect.errors import InputError
    from recollect.estimators import Forecaster

    model = _load(path)
    if not isinstance(model, Forecaster):
        raise InputError(
            f"{path} holds layers alone, so it is not known how they take a series",
            expected="a model that 'recollect fit' wrote",
            remedy="in Python, recollect.diagnosis.describe(layer, x) shows the numbers of any run",
        )
    contexts, targets = model.windows(read_series(data, target or model.name_, time=time, fill=fill))
    return describe(model.network_, contexts[-1:], targets[-1:], step=step)


def _load(path: Path) -> Forecaster | nn.Module:
    """What ``recollect fit`` or ``recollect.save`` wrote."""
    from recollect.estimators import Forecaster
    from recollect.model_file import load, read_model

    header, _ = read_model(path)
    return load(path) if header.get("kind") == "module" else Forecaster.load(path)
