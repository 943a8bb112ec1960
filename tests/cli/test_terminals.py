"""What commands print can be read: at any width, in any encoding, and whatever names the data have."""

from __future__ import annotations

import csv
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from recollect import Forecaster, datasets
from recollect.cli.app import app

QUICK = ["--horizon", "3", "--epochs", "1", "--hidden-size", "4", "--context-length", "6"]
NAME = "größe ═ ‖h‖"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def fitted():
    return Forecaster(3, 6, hidden_size=4, epochs=1).fit(np.arange(60.0) % 7)


def named(fitted, name, path="m"):
    """The same model as of a column of another name."""
    fitted.name_ = name
    fitted.save(path)


def run(*arguments, columns=80):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result


def words_of_tables(text):
    rows = [line for line in text.splitlines() if line[:1] in "┃│"]
    return set(re.sub("[┃│]", " ", " ".join(rows)).split())


@pytest.mark.parametrize("columns", [1, 10, 40])
@pytest.mark.parametrize(
    "arguments",
    [["datasets"], ["forecast", "m"], ["backtest", "sunspots", *QUICK]],
    ids=lambda arguments: arguments[0],
)
def test_every_word_of_a_table_is_there_at_any_width(fitted, arguments, columns):
    named(fitted, "x" * 30)
    wide = words_of_tables(run(*arguments, columns=300).stdout)
    assert len(wide) > 5
    assert words_of_tables(run(*arguments, columns=columns).stdout) == wide


@pytest.mark.parametrize("name", ["speed [m/s]", "[/]", ":smile:", "a [bold]b", "[kWh]"])
def test_names_are_shown_as_they_are(fitted, name):
    named(fitted, name)
    assert name in run("forecast", "m").stdout


def test_control_characters_of_a_name_are_escaped(fitted):
    named(fitted, "\x1b]0;title\x07y")
    said = run("forecast", "m").output
    assert r"\x1b]0;title\x07y" in said
    assert "\x1b" not in said
    pathlib.Path("data.csv").write_text("time,\x1b[31my\n1,a\n", encoding="utf-8")
    failed = CliRunner().invoke(app, ["backtest", "data.csv", *QUICK])
    assert failed.exit_code == 2
    assert "\x1b" not in failed.output


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a", "y"])
def test_a_name_is_written_as_it_is_and_what_a_spreadsheet_makes_of_it_is_said(fitted, name):
    named(fitted, name)
    result = run("forecast", "m", "-o", "out.csv")
    with open("out.csv", encoding="utf-8", newline="") as file:
        assert next(csv.reader(file))[1] == name
    assert ("formula" in result.stderr) == (name != "y")
    assert datasets.read_series("out.csv", name).values.tolist() == fitted.predict().tolist()


# Several commands in one process, with arguments as the system hands them over.
SEVERAL = """
import sys
from recollect.cli import main

codes, arguments = [], []
for argument in [*sys.argv[1:], "then"]:
    if argument != "then":
        arguments.append(argument)
        continue
    sys.argv = ["recollect", *arguments]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code or 0)
    arguments = []
print(codes)
"""
MINE = '''
import recollect, torch

@recollect.cell(gates="a", states="h")
def läufer(inp, rec, prev):
    """Hält die Größe."""
    return prev.h + 0.5 * (torch.tanh(inp.a + rec.a) - prev.h)
'''


@pytest.mark.skipif(os.name != "posix", reason="locales of POSIX")
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
    ],
    ids=["LC_ALL=C", "a pipe in Latin-1"],
)
def test_names_are_found_and_shown_in_any_locale(tmp_path, fitted, environment):
    rows = "".join(f"{t},{t % 5},{t % 7}\n" for t in range(60))
    pathlib.Path("größe.csv").write_text(f"zeit,other,{NAME}\n{rows}", encoding="utf-8")
    pathlib.Path("größe.py").write_text(MINE, encoding="utf-8")
    named(fitted, NAME, "größe.safetensors")
    calls = [
        ["forecast", "größe.safetensors", "größe.csv", "--time", "zeit", "--target", NAME, "-o", "öut.csv"],
        ["forecast", "größe.safetensors", "größe.csv", "--target", "grösse"],
        ["describe", "größe.py:läufer", "--html", "läufer.html"],
        ["describe", "größe.py:laufer"],
        ["datasets"],
    ]
    arguments = [argument for call in calls for argument in [*call, "then"]]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, *arguments[:-1]],
        capture_output=True, check=False, env={**os.environ, "COLUMNS": "120", **environment},
    )  # fmt: skip
    said = done.stdout.decode(environment.get("PYTHONIOENCODING", "utf-8"))
    failures = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 0, failures
    assert "Traceback" not in failures
    assert said.splitlines()[-1] == "[0, 2, 0, 2, 0]"
    assert {"öut.csv", "läufer.html"} <= {path.name for path in tmp_path.iterdir()}
    assert datasets.read_series("öut.csv").name == NAME
    assert "läufer: Hält die Größe." in said
    if environment["LC_ALL"] == "C":
        assert NAME in said
        assert "Wrote öut.csv" in said
        assert "did you mean" in failures


def command(*arguments, **options):
    """Run a command in a process of its own."""
    code = "from recollect.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, check=False, **options
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's full device")
@pytest.mark.parametrize("argument", ["--help", "--version", "datasets"])
def test_a_full_disk_is_said_in_one_sentence(argument):
    with open("/dev/full", "wb") as full:
        done = command(argument, stdout=full)
    assert (done.returncode, done.stderr) == (2, "Error: No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("argument", ["--help", "--version", "datasets"])
def test_a_reader_that_goes_away_is_no_error_to_speak_of(argument):
    reading, writing = os.pipe()
    os.close(reading)
    done = command(argument, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="other systems say it otherwise")
@pytest.mark.parametrize("gone", ["stdout", "stderr", "both"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "sunspots", "--horizon", "3", "--context-length", "6", "--hidden-size", "4", "--epochs", "2"],
        ["datasets", "sunspots"],
        ["describe", "lstm", "--html"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_readers_that_go_away_cost_no_work(arguments, gone, tmp_path):
    """As in ``recollect fit ... | true``."""
    target = tmp_path / "out"
    if "--html" not in arguments:
        arguments = [*arguments, "-o"]
    ends, streams = os.pipe(), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    os.close(ends[0])
    streams |= dict.fromkeys(streams if gone == "both" else [gone], ends[1])
    code = "from recollect.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments, str(target)], check=False, **streams)
    os.close(ends[1])
    assert done.returncode == 0
    assert target.stat().st_size > 100
