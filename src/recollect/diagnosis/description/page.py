"""A cell described: drawn, in equations, and, of a model that ran, with its numbers at one step."""

from __future__ import annotations

import copy
import inspect
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recollect._files import write_atomically
from recollect.cells import Cell
from recollect.diagnosis.description.moment import Moment, moment, summary
from recollect.diagnosis.report.page import escape, page, table
from recollect.errors import GraphError, InputError
from recollect.graph.drawing import draw_step, draw_unrolled, style_sheet
from recollect.graph.latex import plain
from recollect.graph.mathml import mathml
from recollect.nn import Recurrent, convert

_HOW_TO_READ = """<p class=note>Time goes from left to right. A box with a coloured frame belongs to the gate of that
colour, and what a box computes is said where one points at it; u is what enters the box. Thick lines carry
states.</p>"""
_HOW_TO_READ_NUMBERS = """<p class=note>Below a box: a bar for each unit (means of neighbours where there are very
many), for gates on a scale of 0 to 1 or −1 to 1, else on one of the box's own; their mean; and after ‖∂‖ the norm of
the gradient of L. The gradient of a state counts every use after it has left the step.</p>"""


@dataclass(frozen=True, eq=False)
class Description:
    """What `describe` says of a cell.

    Attributes:
        cell: it.
        input_size, hidden_size: of the layer that was described; None of a cell alone.
        parameters: of that layer, in all its levels and directions.
        moment: the numbers of one step; None where nothing ran.
    """

    cell: Cell
    input_size: int | None = None
    hidden_size: int | None = None
    parameters: int | None = None
    moment: Moment | None = None

    def __str__(self) -> str:
        lines = [f"{self.cell.name}: {self.summary}", "", *(f"    {line}" for line in plain(self.cell.graph)), ""]
        lines += [f"x[t] is the input at step t, {self.cell.states[0]}[t] the output; σ is the logistic function.", ""]
        lines += [f"{name:<11} {value}" for name, value in self.facts().items()]
        if self.moment is not None:
            lines += ["", str(self.moment)]
        return "\n".join(lines)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the page: drawings, equations and facts, in one file that needs nothing else and no network.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        write_atomically(path, _page(self))

    @property
    def summary(self) -> str:
        """The first line of the cell's docstring."""
        return _doc(self.cell).partition("\n")[0] or "a cell without a description"

    def facts(self) -> dict[str, str]:
        """Gates, states, vectors, parameters and source."""
        cell = self.cell
        gates, vectors = len(cell.gates), len(cell.vectors)
        formula = f"{gates}·H·(I + H + 2)" + (f" + {vectors}·H" if vectors else "")
        facts = {
            "gates": " ".join(cell.gates),
            "states": " ".join(cell.states),
            "vectors": " ".join(cell.vectors) or "-",
            "parameters": formula,
        }
        if self.input_size is not None and self.hidden_size is not None:
            sizes = f"with I = {self.input_size}, H = {self.hidden_size}"
            count = parameter_count(cell, self.input_size, self.hidden_size)
            plain_layer = self.parameters in (None, count)
            facts["parameters"] = f"{count:,} = {formula}  {sizes}" if plain_layer else f"{self.parameters:,} {sizes}"
        if source := re.search(r"Source: (.*?)(\n\n|$)", _doc(cell), re.DOTALL):
            facts["source"] = " ".join(source[1].replace("`", "").split())
        return facts


def describe(
    subject: Cell | nn.Module,
    x: Tensor | PackedSequence | tuple[Any, ...] | None = None,
    target: Any = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    lengths: Any = None,
    layer: str | None = None,
    step: int = -1,
) -> Description:
    """Describe a cell: its equations and its picture, folded and unrolled; with ``x``, with its numbers at one step.

    The numbers come from one run of a copy of the model in float64, forwards and backwards, as in `diagnose`: the
    activations of the gates, the states as they leave the step, and how L depends on both. Of several rows, the
    longest is shown (the first of them).

    Args:
        subject: a cell, or a module with a recurrent layer of ours or of ``torch.nn``.
        x, target, loss, lengths: as for `diagnose`; without ``x`` nothing is run.
        layer: a module's path, or a level and direction of it ("encoder.rnn.l0_reverse"). By default the last
            recurrent layer to run, its top level, forward direction.
        step: which step of the row, from 0, or from -1 backwards.

    Returns:
        A `Description`; ``print`` it, or write it with ``to_html``.

    Raises:
        InputError: as `diagnose`; the module has no recurrent layer; there is no such step or layer; or ``x`` was
            given for a cell alone.

    Example:
        >>> recollect.diagnosis.describe(recollect.cells.lstm).to_html("lstm.html")
        >>> print(recollect.diagnosis.describe(model, x, target, step=10))
    """
    if isinstance(subject, Cell):
        if x is not None:
            raise InputError(
                "a cell alone has no weights to run on x",
                given=f"cell {subject.name!r}",
                expected="a model",
                remedy=f"pass a layer, such as recollect.nn.Recurrent({subject.name}, input_size, hidden_size)",
            )
        return Description(subject)
    if x is None:
        return _of_layer(_layer(subject, layer), None)
    seen = moment(subject, x, target, loss, lengths=lengths, layer=layer, step=step)
    return _of_layer(_layer(subject, seen.path or None), seen)


def parameter_count(cell: Cell, input_size: int, hidden_size: int) -> int:
    """Parameters of one layer in one direction, biases included."""
    per_unit = len(cell.gates) * (input_size + hidden_size + 2) + len(cell.vectors)
    return per_unit * hidden_size


def _layer(model: nn.Module, path: str | None) -> Recurrent:
    """A recurrent layer of a model, ``torch.nn``'s as ours: that with a path, else the last."""
    theirs = (nn.RNN, nn.LSTM, nn.GRU)
    found = {name: each for name, each in model.named_modules() if isinstance(each, Recurrent) or type(each) in theirs}
    fitting = [each for name, each in found.items() if path is None or _begins(name, path) or _begins(path, name)]
    if not fitting:
        raise InputError(
            "there is no recurrent layer to describe",
            given=f"{type(model).__name__}" + ("" if path is None else f", layer={path!r}"),
            expected=", ".join(found) or "recollect.nn.Recurrent, RNN, LSTM, GRU, or torch.nn.RNN, LSTM, GRU",
        )
    layer = fitting[-1] if isinstance(fitting[-1], Recurrent) else convert(copy.copy(fitting[-1]))
    assert isinstance(layer, Recurrent)
    return layer


def _begins(path: str, beginning: str) -> bool:
    return not beginning or f"{path}.".startswith(f"{beginning}.")


def _of_layer(layer: Recurrent, seen: Moment | None) -> Description:
    count = sum(parameter.numel() for parameter in layer.parameters())
    return Description(layer.cell, layer.input_size, layer.hidden_size, count, seen)


def _doc(cell: Cell) -> str:
    return inspect.cleandoc(cell.__doc__ or "")


def _page(description: Description) -> str:
    cell, seen = description.cell, description.moment
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in description.facts().items()
    )
    equations = "".join(f"<div>{each}</div>" for each in mathml(cell.graph))
    title = cell.name if seen is None else f"{cell.name} at step {seen.step}"
    try:
        drawn = draw_step(cell.graph, cell.name, loops=seen is None, readings=None if seen is None else seen.readings)
        step = f'<div class="drawing">{drawn}</div>{_HOW_TO_READ}'
    except GraphError as error:
        step = f"<p class=note>{escape(str(error))}</p>"
    unrolled = draw_unrolled(
        cell.graph, cell.name, step=None if seen is None else seen.step, norms=None if seen is None else seen.norms
    )
    numbers = "" if seen is None else f"{_HOW_TO_READ_NUMBERS}<h2>Numbers</h2>{_table(seen)}"
    return page(
        title,
        f"""<h1>{escape(title)}</h1>
<p>{escape(description.summary)}</p>
{"" if seen is None else f"<p><code>{escape(seen.title)}</code></p>"}
<h2>One step</h2>
{step}
{numbers}
<h2>Over time</h2>
<div class="drawing">{unrolled}</div>
<h2>Equations</h2>
<div class="equations">{equations}</div>
<dl>{facts}</dl>""",
        style_sheet(),
    )


def _table(seen: Moment) -> str:
    rows = [[row.title, *summary(row)] for row in seen.rows]
    return table(seen.title, rows, ["", "mean", "min", "max", "norm", "saturated"])
