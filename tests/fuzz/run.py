"""Fuzz the public calls: python tests/fuzz/run.py layers --seconds 60.

Each example is written to the note before it runs, since a fault of a kernel ends the process; --example runs that one
alone. Ends with 0 where nothing was found.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import resource
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import gates
import layer_checks
import stepper_calls
from hypothesis import HealthCheck, Phase, given, seed, settings

TARGETS = {"layers": layer_checks, "stepper": stepper_calls}
# Examples of a round have the same few kernels, which take longer to compile than a hundred examples to run.
_OF_A_ROUND = 40


def fuzz(target: str, start: int, seconds: float, note: Path | None, *, shrinks: bool) -> int:
    """Run rounds of examples until the time is over; returns how many there were. What fails is first made smaller."""
    module, end = TARGETS[target], time.monotonic() + seconds
    count, rounds, last, failed = 0, 0, time.monotonic(), False
    phases = [Phase.generate, Phase.shrink] if shrinks else [Phase.generate]

    while time.monotonic() < end:
        number = start + rounds
        kind = module.Kind.drawn(random.Random(number))

        @seed(number)
        @settings(
            max_examples=_OF_A_ROUND, deadline=None, database=None, phases=phases,
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        )  # fmt: skip
        @given(module.examples(kind))
        def explore(example: object) -> None:
            nonlocal count, failed
            if time.monotonic() > end and not failed:
                return
            if note is not None:
                note.write_text(repr(example))
            try:
                module.check(example)
            except Exception:
                failed = True
                raise
            count += 1

        explore()
        rounds += 1
        if time.monotonic() - last > 60:
            last = time.monotonic()
            print(f"{target}: {count} examples in {rounds} rounds", flush=True)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="of the first round; a fresh one if left out")
    parser.add_argument("--note", type=Path, help="where each example is written before it runs")
    parser.add_argument("--example", type=Path, help="run this note's example alone")
    parser.add_argument("--broken", choices=gates.BROKEN, help="take away a check, to see that it is missed")
    options = parser.parse_args()

    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # of backends that give way, which tests elsewhere look at
    with gates.broken(options.broken):
        if options.example is not None:
            module = TARGETS[options.target]
            module.check(eval(options.example.read_text(), vars(module)))
            print("nothing found")
            return
        start = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
        print(f"{options.target}: seed {start}, {options.seconds:.0f} s", flush=True)
        count = fuzz(options.target, start, options.seconds, options.note, shrinks=options.broken is None)
    if not count:
        raise SystemExit("no example ran")
    print(f"{options.target}: nothing found in {count} examples")


if __name__ == "__main__":
    main()
