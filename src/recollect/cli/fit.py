"""``recollect fit`` and ``recollect backtest``: train a forecaster and say how good it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recollect.cli import options
from recollect.cli.diagnose import look_inside, some_windows
from recollect.cli.options import check_outputs

if TYPE_CHECKING:
    from torch import nn

    from recollect.datasets import Series
    from recollect.diagnosis import Probe
    from recollect.estimators import Forecaster

Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Watch the training, and write a page of what is seen."),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Model file to write.")]


def fit(
    data: options.Data,
    horizon: options.Horizon,
    output: Output,
    html: Html = None,
    target: options.Target = None,
    time: options.Time = None,
    fill: options.FillMissing = None,
    context_length: options.ContextLength = None,
    season_length: options.Season = None,
    cell: options.CellName = "lstm",
    hidden_size: options.HiddenSize = 64,
    epochs: options.Epochs = 100,
    test_size: options.TestSize = None,
    seed: options.Seed = 0,
) -> None:
    """Train a forecaster and save it.

    First the last rows are held out: a model is trained on the rest, and its errors on them are shown
    beside forecasts that need no training. Then the same model is trained again on all rows, and saved.

    \b
    Example:
      recollect fit sunspots --horizon 11 --epochs 20 -o sunspots.safetensors
      recollect fit sunspots --horizon 11 --epochs 5 -o sunspots.safetensors --html report.html
    """
    check_outputs(output, html, inputs=[data])
    model = _new_forecaster(horizon, context_length, season_length, cell, hidden_size, epochs, seed)
    series = _read(data, target, time, fill)
    held_out = _print_backtest(model, series, test_size)
    typer.echo(f"Training on all {len(series)} rows ...", err=True)
    probes: list[Probe] = []
    model.fit(series, watch=None if html is None else partial(_probe, probes)).save(output)
    typer.echo(
        f"Saved {output}: this model was fitted on all {len(series)} rows; "
        f"the one in the table saw only the first {len(series) - held_out}.\n"
        f"Next: recollect forecast {output}"
    )
    if html is not None:
        x, y = some_windows(*model.windows(series))
        look_inside(model.network_, x, y, thorough=True, surface=True, training=probes[0]).to_html(html)
        typer.echo(f"Wrote {html}")


def _probe(probes: list[Probe], network: nn.Module) -> Probe:
    """Watch a network's training; the probe is also put into ``probes``."""
    from recollect.diagnosis import Probe

    probes.append(Probe(network))
    return probes[-1]


def backtest(
    data: options.Data,
    horizon: options.Horizon,
    target: options.Target = None,
    time: options.Time = None,
    fill: options.FillMissing = None,
    context_length: options.ContextLength = None,
    season_length: options.Season = None,
    cell: options.CellName = "lstm",
    hidden_size: options.HiddenSize = 64,
    epochs: options.Epochs = 100,
    test_size: options.TestSize = None,
    seed: options.Seed = 0,
) -> None:
    """Measure a forecaster on held-out rows.

    Its errors are shown beside those of forecasts that need no training.

    \b
    Example:
      recollect backtest sunspots --horizon 11 --cell rnn_tanh --epochs 20
    """
    model = _new_forecaster(horizon, context_length, season_length, cell, hidden_size, epochs, seed)
    _print_backtest(model, _read(data, target, time, fill), test_size)


def _new_forecaster(
    horizon: int,
    context_length: int | None,
    season_length: int | None,
    cell: str,
    hidden_size: int,
    epochs: int,
    seed: int,
) -> Forecaster:
    from recollect.estimators import Forecaster

    model = Forecaster(
        horizon,
        context_length=context_length,
        cell=cell,
        hidden_size=hidden_size,
        epochs=epochs,
        season_length=season_length,
        seed=seed,
        verbose=True,
    )
    model.check_parameters()
    return model


def _read(data: str, target: str | None, time: str | None, fill: options.Fill | None) -> Series:
    from recollect.datasets import read_series

    return read_series(data, target, time=time, fill=fill)


def _print_backtest(model: Forecaster, series: Series, test_size: int | None) -> int:
    """Print the table; return how many rows were held out."""
    from recollect.cli.terminal import Terminal

    result = model.backtest(series, test_size)
    Terminal().print(result)
    return len(series) - len(result.history)
