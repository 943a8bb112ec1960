"""``recollect diagnose``: how far back in time a trained model learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recollect.cli import options
from recollect.cli.options import check_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recollect.diagnosis import Diagnosis, Probe

# The norms are means over windows: more of them cost time and change little.
_WINDOWS = 64

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that 'recollect fit' wrote.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one HTML page.")]
Thorough = Annotated[
    bool | None,
    typer.Option(
        "--thorough/--quick",
        help="Also change inputs to see how long they are remembered, let the states run on, measure Lyapunov "
        "exponents and, for the page, draw the error surface.",
        show_default="thorough with --html",
    ),
]
Prove = Annotated[
    bool,
    typer.Option("--prove", help="Try each remedy: train a copy with it and one without, for a short time."),
]
Window = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Steps that truncated backpropagation goes back where you train, to judge."),
]


def diagnose(
    model: Model,
    data: options.Data,
    html: Html = None,
    thorough: Thorough = None,
    prove: Prove = False,
    window: Window = None,
    target: options.Target = None,
    time: options.Time = None,
    fill: options.FillMissing = None,
) -> None:
    """Show what the gradient does back through time, what is wrong, and what helps.

    The model forecasts windows of DATA, at most 64 from its start to its end; the gradient of the squared
    error is measured at every step back. The page can be opened offline. Nothing is changed in MODEL.

    \b
    Example:
      recollect fit sunspots --horizon 11 --epochs 10 -o sunspots.safetensors
      recollect diagnose sunspots.safetensors sunspots
      recollect diagnose sunspots.safetensors sunspots --html report.html
      recollect diagnose sunspots.safetensors sunspots --prove
    """
    from recollect.datasets import read_series
    from recollect.estimators import Forecaster

    check_outputs(html, inputs=[model, data])
    fitted = Forecaster.load(model)
    x, y = some_windows(*fitted.windows(read_series(data, target or fitted.name_, time=time, fill=fill)))
    thorough = html is not None if thorough is None else thorough
    result = look_inside(fitted.network_, x, y, thorough=thorough, surface=thorough and html is not None, window=window)
    typer.echo(str(result))
    if prove:
        _prove(fitted.network_, x, y, result)
    if html is not None:
        result.to_html(html)
        typer.echo(f"Wrote {html}")


def some_windows(contexts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """At most 64 of the windows of a series, evenly spread from its start to its end."""
    import numpy as np

    picked = np.unique(np.linspace(0, len(contexts) - 1, _WINDOWS).round().astype(int))
    return contexts[picked], targets[picked]


def look_inside(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    thorough: bool,
    surface: bool,
    window: int | None = None,
    training: Probe | None = None,
) -> Diagnosis:
    """Diagnose a network with progress bars for what takes long."""
    from recollect.diagnosis import diagnose as look
    from recollect.diagnosis import error_surface

    drawn: Any = error_surface(network, x, y, progress=True) if surface else None
    return look(network, x, y, thorough=thorough, surface=drawn, window=window, training=training, progress=True)


def _prove(network: nn.Module, x: Tensor, y: Tensor, result: Diagnosis) -> None:
    """Try the remedy of each finding that has one which a training can try."""
    from recollect.diagnosis import prove
    from recollect.diagnosis.progress import progress_bar

    steps = 50
    candidates = [each for each in result.findings if each.when in ("model", "data", "step")]
    if not candidates:
        typer.echo("\nNothing to prove: no finding has a remedy that a short training can try.")
    for finding in candidates:
        with progress_bar(f"Trying the remedy for {finding.kind}", 2 * steps, shown=True) as advance:
            proof = prove(network, x, y, finding=finding, steps=steps, on_step=lambda: advance(1))
        typer.echo(f"\n{proof}")
