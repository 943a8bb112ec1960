"""No command writes over what it reads, by whatever name, or twice to one place; all are found in the app itself."""

from __future__ import annotations

import os
import pathlib

import pytest
import typer
from typer.testing import CliRunner

from recollect.cli.app import app

COMMANDS = typer.main.get_command(app).commands

# What a command reads, and what it writes. (Nothing is read before the outputs are looked at, so any content will do.)
INPUTS = {"data": "in.csv", "model": "in.safetensors", "cell": "in.py"}
OUTPUTS = ("output", "html")
# What an argument or option needs beside it.
NEEDS = {("describe", "data"): ["--model", "other.safetensors"]}
REQUIRED = {"horizon": "3", "data": "other.csv", "model": "other.safetensors", "output": "out"}


def options(command):
    return {parameter.name: parameter for parameter in COMMANDS[command].params}


def outputs(command):
    return [name for name in OUTPUTS if name in options(command)]  # in an order that all workers of pytest-xdist share


def is_input(command, name):
    return name in INPUTS and (command, name) != ("fit", "cell") and (command, name) != ("backtest", "cell")


PAIRS = [
    (command, output, source)
    for command in COMMANDS
    for output in outputs(command)
    for source in options(command)
    if is_input(command, source)
]
SPELLINGS = {
    "as it is": lambda path: path,
    "relative": lambda path: f"./sub/../{path}",
    "absolute": os.path.abspath,
    "symbolic link": lambda path: linked(os.symlink, path),
    "hard link": lambda path: linked(os.link, path),
    "linked folder": lambda path: f"folder/{path}",
}


def linked(link, path):
    link(path, "link")
    return "link"


def call(command, **given):
    """Call a command with these arguments and options, and whatever it needs."""
    known = options(command)
    required = {name: REQUIRED[name] for name, parameter in known.items() if parameter.required}
    arguments = [command]
    for name, value in {**required, **given}.items():
        parameter = known[name]
        arguments += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
        arguments += NEEDS.get((command, name), [])
    return CliRunner().invoke(app, arguments)


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in INPUTS.values():
        pathlib.Path(name).write_bytes(b"as it was")
    pathlib.Path("sub").mkdir()
    pathlib.Path("folder").symlink_to(".")


def assert_refused(result, *words):
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("Error: ")
    for word in words:
        assert word in result.stderr
    for name in INPUTS.values():
        assert pathlib.Path(name).read_bytes() == b"as it was"


def test_every_file_of_a_command_is_known_here():
    for command in COMMANDS:
        for name, parameter in options(command).items():
            holds_a_path = any(word in (parameter.metavar or "") for word in ("FILE", "DIR", "DATA", "MODEL"))
            assert not holds_a_path or name in OUTPUTS or is_input(command, name), (command, name)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("command", "output", "source"), PAIRS, ids=[" ".join(pair) for pair in PAIRS])
def test_an_input_is_never_written_over(command, output, source, spelling):
    path = INPUTS[source]
    said = call(command, **{source: path, output: SPELLINGS[spelling](path)})
    assert_refused(said, "would take the place of what is read")


@pytest.mark.parametrize("command", [name for name in COMMANDS if len(outputs(name)) == len(OUTPUTS)])
def test_two_outputs_are_two_files(command):
    assert_refused(call(command, output="out", html="sub/../out"), "would be written twice")
    assert not os.path.exists("out")


WRITING = [(command, output) for command in COMMANDS for output in outputs(command)]


@pytest.mark.parametrize(("command", "output"), WRITING, ids=[" ".join(pair) for pair in WRITING])
@pytest.mark.parametrize(
    "place", ["no/where", "in.csv/below", "a" * 300, "loop", pytest.param("sub", id="folder"), "read only"]
)
def test_where_nothing_can_be_written_is_said_first(command, output, place, monkeypatch):
    pathlib.Path("loop").symlink_to("loop")
    if place == "read only":
        pathlib.Path(place).touch()
        allowed = os.access  # root may do anything
        monkeypatch.setattr(
            os, "access", lambda path, mode: (str(path), mode) != (place, os.W_OK) and allowed(path, mode)
        )
    if command == "datasets":
        assert_refused(call(command, name="sunspots", output=place)) if place != "sub" else None
    elif command == "bench" and place in ("sub", "read only"):
        return  # a folder is what it wants
    else:
        assert_refused(call(command, **{output: place}), place)


def test_the_name_of_an_embedded_series_is_no_file():
    said = call("forecast", model="missing.safetensors", data="sunspots", output="sunspots")
    assert_refused(said, "missing.safetensors")
