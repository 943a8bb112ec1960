"""``recollect bench``: how fast it is on this machine, beside what else is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recollect.cli.options import check_outputs

Budget = Annotated[float, typer.Option(min=1, metavar="SECONDS", help="About how long it may take in all.")]
Full = Annotated[bool, typer.Option("--full", help="Every shape with 15 pairs of runs, however long it takes.")]
Only = Annotated[str, typer.Option(metavar="TEXT", help="Subjects whose name contains this, such as GRU or JAX.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for recollect-bench.svg and recollect-bench.json.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads of ours and of every peer.", show_default="as torch's")
]


def bench(
    budget: Budget = 150,
    full: Full = False,
    only: Only = "",
    output: Output = Path(),
    threads: Threads = None,
) -> None:
    """Measure speed on this machine, beside torch.nn, JAX, ONNX Runtime and loops in PyTorch.

    Ours and each peer run in turn, with equal weights and threads, after a check that both compute the same;
    printed is the median of the ratios. Where the runs differ more among themselves than ours from the peer's,
    the figure is marked ~ and shows no winner. Peers that are not installed are skipped:
    pip install 'recollect[bench]' brings them. Leave the machine alone meanwhile.

    \b
    Example:
      recollect bench --only zoneout --budget 5
    """
    import torch

    from recollect.benchmark import terminal
    from recollect.benchmark.catalogue import subjects
    from recollect.cli.terminal import Terminal
    from recollect.errors import InputError

    json, svg = output / "recollect-bench.json", output / "recollect-bench.svg"
    check_outputs(json, svg)
    chosen = subjects(full=full, only=only)
    if not chosen:
        names = ", ".join(dict.fromkeys(each.title for each in subjects()))
        raise InputError(f"no subject's name contains {only!r}", expected=f"part of one of {names}")
    if threads is not None:
        torch.set_num_threads(threads)
    found = terminal.compare(chosen, seconds=None if full else budget, **({"least": 15} if full else {}))
    terminal.show(found, Terminal())
    terminal.write(found, json, svg)
    typer.echo(f"Wrote {json}" + (f" and {svg}" if found.rows else ""))
    if any(row.refused for row in found.rows):
        raise typer.Exit(1)
