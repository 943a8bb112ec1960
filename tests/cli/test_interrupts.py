"""Ctrl-C, at any moment of any command: exit code 130, one line, and files whole or not there."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from recollect import Forecaster, datasets
from recollect.benchmark import run as benchmark_run
from recollect.benchmark import terminal
from recollect.cli import INTERRUPTED
from recollect.cli.app import app

QUICK = ["--horizon", "3", "--epochs", "2", "--hidden-size", "4", "--context-length", "6"]
CALLS = {
    "fit": ["sunspots", *QUICK, "-o", "out"],
    "backtest": ["sunspots", *QUICK],
    "forecast": ["m", "sunspots", "-o", "out"],
    "diagnose": ["m", "sunspots", "--html", "out", "--quick"],
    "describe": ["lstm", "--html", "out"],
    "bench": ["--only", "resets= over plain LSTM inf", "--budget", "1"],
    "datasets": ["sunspots", "-o", "out"],
}


@pytest.fixture(autouse=True)
def _with_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Forecaster(3, 6, hidden_size=4, epochs=1).fit(datasets.load("sunspots")).save("m")


def interrupt(*_, **__):
    signal.raise_signal(signal.SIGINT)


def assert_interrupted(command):
    result = CliRunner().invoke(app, [command, *CALLS[command]])
    assert result.exit_code == 130, result.output
    assert result.stderr.splitlines()[-1] == INTERRUPTED
    assert result.stderr.count("Interrupted") == 1
    assert os.listdir() == ["m"]


def test_every_command_is_here():
    assert CALLS.keys() == typer.main.get_command(app).commands.keys()


@pytest.mark.parametrize("command", sorted(CALLS.keys() - {"backtest"}))
def test_while_a_file_is_written(command, monkeypatch):
    if command == "bench":
        monkeypatch.setattr(benchmark_run, "measure", lambda *_, **__: terminal.Results({}, []))
    monkeypatch.setattr(os, "fsync", interrupt)
    assert_interrupted(command)


@pytest.mark.parametrize("command", ["fit", "backtest"])
def test_while_a_network_trains(command, monkeypatch):
    steps, step = [], torch.optim.Adam.step

    def third(*arguments, **options):
        steps.append(1)
        return interrupt() if len(steps) == 3 else step(*arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", third)
    assert_interrupted(command)


def test_what_was_saved_before_stays(monkeypatch):
    monkeypatch.setattr("recollect.cli.fit.look_inside", interrupt)
    result = CliRunner().invoke(app, ["fit", "sunspots", *QUICK, "-o", "out", "--html", "out.html"])
    assert result.exit_code == 130
    assert "Saved out" in result.stdout
    assert Forecaster.load("out").n_rows_ == 309
    assert not pathlib.Path("out.html").exists()


def test_while_the_program_is_loaded():
    code = """
import signal, sys
sys.addaudithook(lambda event, about: event == "import" and about[0] == "typer" and signal.raise_signal(signal.SIGINT))
from recollect.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{INTERRUPTED}\n")
