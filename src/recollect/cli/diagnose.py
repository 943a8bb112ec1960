"""``recollect diagnose``: how far back in time a trained model learns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recollect.cli import options
from recollect.cli.options import require_writable

# The norms are means over windows: more of them cost time and change little.
_WINDOWS = 64

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that 'recollect fit' wrote.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one HTML page.")]


def diagnose(
    model: Model,
    data: options.Data,
    html: Html = None,
    target: options.Target = None,
    time: options.Time = None,
    fill: options.FillMissing = None,
) -> None:
    """Show what the gradient does back through time.

    The model forecasts windows of DATA, at most 64 from its start to its end; the gradient of the squared
    error is measured at every step back. The page can be opened offline.

    \b
    Example:
      recollect fit sunspots --horizon 11 --epochs 10 -o sunspots.safetensors
      recollect diagnose sunspots.safetensors sunspots --html report.html
    """
    import numpy as np

    from recollect.datasets import read_series
    from recollect.diagnosis import diagnose as look_inside
    from recollect.estimators import Forecaster

    if html is not None:
        require_writable(html)
    fitted = Forecaster.load(model)
    contexts, targets = fitted.windows(read_series(data, target or fitted.name_, time=time, fill=fill))
    picked = np.unique(np.linspace(0, len(contexts) - 1, _WINDOWS).round().astype(int))
    result = look_inside(fitted.network_, contexts[picked], targets[picked])
    typer.echo(str(result))
    if html is not None:
        result.to_html(html)
        typer.echo(f"Wrote {html}")
