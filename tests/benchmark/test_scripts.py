"""The programs in ``benchmarks/`` run from end to end; what they compare is compared by themselves first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recollect.engine.llvm.machine import host


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["streams", "--rounds", "1"], {"recollect ": 4, "B=": 4, "refused": 0}),
        (["first_calls", "--rounds", "1"], {"compiled ": 1, "from disk ": 1}),
        (
            ["probe", "--rounds", "1", "--steps", "10", "--sizes", "2", "3", "4", "5"],
            {"ms a step": 3, " %": 2, "refused": 0},
        ),
        (["limits", "--seconds", "0", "--threads", "1", "--most-rows", "8"], {"thread(s)": 2, "%": 12}),
        (["long_sequences", "--steps", "4000", "--passes", "1"], {"MiB beyond": 2, "refused": 0}),
        (["kept_memory", "--case", "checkpointed", "--whose", "ours"], {"\n": 1}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_it_prints_every_figure(arguments: list[str], lines: dict[str, int]):
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {text: done.stdout.count(text) for text in lines} == lines


def test_bfloat16_is_measured_where_the_machine_has_it_and_refused_elsewhere():
    done = run("bfloat16", "--pairs", "2")
    if host().bfloat16:
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("training ") == done.stdout.count("B=") == 4
    else:
        assert done.returncode == 2
        assert "AVX512-BF16" in done.stderr
        assert not done.stdout
