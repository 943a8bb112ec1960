"""Measure the whole grid for the record: ``make bench``, or ``python -m benchmarks``.

The measuring is `recollect bench --full`'s; here the results go to ``benchmarks/results``, named by the machine.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from rich.console import Console

from recollect.benchmark import terminal
from recollect.benchmark.catalogue import subjects

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of runs for each figure (default 15)")
    parser.add_argument("--only", default="", help="subjects whose name contains this; nothing is written then")
    options = parser.parse_args()

    found = terminal.compare(subjects(full=True, only=options.only), least=options.pairs, most=options.pairs)
    console = Console()
    terminal.show(found, console)
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        name = f"{found.machine['cpu']} {found.machine['llvm_cpu']}".lower()
        path = RESULTS / (re.sub(r"[^a-z0-9]+", "-", name).strip("-") + ".json")
        terminal.write(found, path, path.with_suffix(".svg"))
        console.print(f"written to {path} and {path.with_suffix('.svg').name}")
    return 1 if any(row.refused for row in found.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
