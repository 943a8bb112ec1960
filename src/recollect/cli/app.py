"""The commands put together, and what a person sees when one fails."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import recollect
from recollect.cli import INTERRUPTED, bench, data, describe, diagnose, fit, forecast
from recollect.cli.terminal import unread
from recollect.cli.text import printable
from recollect.errors import RecollectError


class _Commands(TyperGroup):
    """Turns what a user can cause into one sentence on standard error: exit code 2, or 130 for Ctrl-C."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with unread():
            try:
                return super().main(*args, **kwargs)
            except RecollectError as error:
                sentence = f"Error: {error}"
            except OSError as error:
                place = f": {error.filename}" if error.filename else ""
                sentence = f"Error: {error.strerror or error}{place}"
            typer.echo(printable(sentence), err=True)
            sys.exit(2)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(INTERRUPTED, err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    # Plain help keeps the examples on one line each, so that they can be copied.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fit")(fit.fit)
app.command("backtest")(fit.backtest)
app.command("forecast")(forecast.forecast)
app.command("diagnose")(diagnose.diagnose)
app.command("describe")(describe.describe)
app.command("bench")(bench.bench)
app.command("datasets")(data.datasets)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"recollect {recollect.__version__}")
        raise typer.Exit


@app.callback()
def recollect_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Recurrent networks for series: forecast them, and see what the network remembers.

    \b
    Start here:
      recollect datasets
      recollect backtest sunspots --horizon 11
      recollect describe lstm
    """
