"""``recollect describe``: a cell's equations, gates, states and size."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from recollect.cells import Cell

Name = Annotated[str | None, typer.Argument(metavar="[CELL]", help="Name of a cell; lists all if left out.")]
Model = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Describe the cell of a file that 'recollect fit' wrote.")
]
InputSize = Annotated[int, typer.Option(min=1, metavar="N", help="Features of the input, for the count.")]
HiddenSize = Annotated[int, typer.Option(min=1, metavar="N", help="Units, for the count.")]


def describe(cell: Name = None, model: Model = None, input_size: InputSize = 1, hidden_size: HiddenSize = 64) -> None:
    """Show a cell's equations, gates, states and size.

    \b
    Example:
      recollect describe gru --input-size 10 --hidden-size 128
    """
    from recollect import cells

    if (cell is not None) + (model is not None) > 1:
        raise typer.BadParameter("give the name of a cell or --model, not both")
    if model is not None:
        from recollect.estimators import Forecaster

        layer = Forecaster.load(model).network_.recurrent
        _print(layer.cell, layer.input_size, layer.hidden_size)
    elif cell is not None:
        _print(cells.by_name(cell), input_size, hidden_size)
    else:
        for name in cells.__all__:
            typer.echo(f"{name:14} {_summary(cells.by_name(name))}")


def parameter_count(cell: Cell, input_size: int, hidden_size: int) -> int:
    """Parameters of one layer in one direction, biases included."""
    per_unit = len(cell.gates) * (input_size + hidden_size + 2) + len(cell.vectors)
    return per_unit * hidden_size


def _print(cell: Cell, input_size: int, hidden_size: int) -> None:
    from recollect.graph.latex import plain

    gates, vectors = len(cell.gates), len(cell.vectors)
    formula = f"{gates}·H·(I + H + 2)" + (f" + {vectors}·H" if vectors else "")
    count = parameter_count(cell, input_size, hidden_size)
    typer.echo(f"{cell.name}: {_summary(cell)}\n")
    for line in plain(cell.graph):
        typer.echo(f"    {line}")
    typer.echo(f"\nx[t] is the input at step t, {cell.states[0]}[t] the output; σ is the logistic function.\n")
    typer.echo(f"gates       {' '.join(cell.gates)}")
    typer.echo(f"states      {' '.join(cell.states)}")
    typer.echo(f"vectors     {' '.join(cell.vectors) or '-'}")
    typer.echo(f"parameters  {count:,} = {formula}  with I = {input_size}, H = {hidden_size}")
    if source := re.search(r"Source: (.*?)(\n\n|$)", _doc(cell), re.DOTALL):
        typer.echo(f"source      {' '.join(source[1].replace('`', '').split())}")


def _summary(cell: Cell) -> str:
    return _doc(cell).partition("\n")[0] or "a cell that came with its model, without a description"


def _doc(cell: Cell) -> str:
    return inspect.cleandoc(cell.__doc__ or "")
