"""The command line: its examples run, its outputs are right, and bad input gets one sentence and exit code 2."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import recollect
from recollect import Forecaster, cells, datasets
from recollect.benchmark import run as benchmark_run
from recollect.cli.app import app
from recollect.diagnosis import describe
from recollect.graph.latex import equations

COMMANDS = ("fit", "backtest", "forecast", "diagnose", "describe", "bench", "datasets")
QUICK = ["--epochs", "1", "--hidden-size", "4", "--context-length", "6"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def examples(command):
    text = succeed(command, "--help")
    lines = text.partition("Example:\n")[2].partition("\n\n")[0].splitlines()
    return [shlex.split(line)[1:] for line in lines]


class TestHelp:
    def test_help_teaches_and_names_every_command(self):
        text = succeed("--help")
        for command in COMMANDS:
            assert re.search(rf"^  {command} +\w", text, re.MULTILINE)

    def test_starting_points_name_real_commands(self):
        lines = re.findall(r"^    recollect (.*)$", succeed("--help"), re.MULTILINE)
        assert len(lines) == 3
        assert all(line.split()[0] in COMMANDS for line in lines)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_examples_run_as_they_stand(self, command):
        found = examples(command)
        assert any(arguments[0] == command for arguments in found)
        for arguments in found:
            succeed(*arguments)

    def test_no_arguments_shows_the_help(self):
        assert "Usage: " in run().output

    def test_version(self):
        assert succeed("--version") == f"recollect {recollect.__version__}\n"

    def test_help_needs_none_of_the_heavy_packages(self):
        code = (
            "import sys; sys.argv = ['recollect', 'fit', '--help']\n"
            "from recollect.cli import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'sklearn', 'polars', 'llvmlite', 'matplotlib'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


class TestFit:
    def test_prints_the_table_then_saves_what_it_says(self):
        text = succeed("fit", "sunspots", "--horizon", 3, *QUICK, "--seed", 4, "--test-size", 30, "-o", "m.safetensors")
        model = Forecaster(3, context_length=6, hidden_size=4, epochs=1, seed=4)
        expected = model.backtest(datasets.load("sunspots"), 30)
        for errors in expected.errors.values():
            assert f"{errors.mae:.4g}" in text
        assert "fitted on all 309 rows" in text
        assert "only the first 279" in text
        saved = Forecaster.load("m.safetensors")
        assert saved.n_rows_ == 309
        np.testing.assert_array_equal(saved.predict(), model.fit(datasets.load("sunspots")).predict())

    def test_backtest_prints_the_same_table(self):
        arguments = ["sunspots", "--horizon", 3, *QUICK]
        table = succeed("backtest", *arguments)
        assert succeed("fit", *arguments, "-o", "m").startswith(table)

    def test_progress_goes_to_standard_error(self):
        result = run("backtest", "sunspots", "--horizon", 3, *QUICK)
        assert "epoch" in result.stderr
        assert "epoch" not in result.stdout

    def test_fills_on_request(self):
        rows = [f"{t},{'' if t == 7 else t % 5}" for t in range(60)]
        pathlib_write("data.csv", "time,y", *rows)
        assert "--fill linear|forward" in run("fit", "data.csv", "--horizon", 2, *QUICK, "-o", "m").stderr
        succeed("fit", "data.csv", "--horizon", 2, *QUICK, "--fill", "forward", "-o", "m")

    def test_unwritable_output_is_refused_before_training(self, monkeypatch):
        monkeypatch.setattr(Forecaster, "fit", lambda *_: pytest.fail("trained first"))
        result = run("fit", "sunspots", "--horizon", 3, "-o", "nowhere/m.safetensors")
        assert_one_sentence(result, "nowhere")

    def test_interrupt_writes_nothing(self, monkeypatch, tmp_path):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(Forecaster, "fit", interrupt)
        result = run("fit", "sunspots", "--horizon", 3, "-o", "m.safetensors")
        assert result.exit_code == 130
        assert result.stderr == "Interrupted; no file is half-written.\n"
        assert not list(tmp_path.iterdir())


class TestForecast:
    @pytest.mark.parametrize(
        ("name", "first", "last"), [("sunspots", "2009", "2011"), ("co2_monthly", "2002-01-01", "2002-03-01")]
    )
    def test_continues_the_times_with_and_without_data(self, name, first, last):
        succeed("fit", name, "--horizon", 3, *QUICK, "-o", "m")
        text = succeed("forecast", "m", "-o", "out.csv")
        assert succeed("forecast", "m", name) == text.replace("Wrote out.csv\n", "")
        series = datasets.load(name)
        table = pl.read_csv("out.csv")
        assert table.columns == ["time", series.name]
        assert [str(time) for time in table["time"]][:: len(table) - 1] == [first, last]
        np.testing.assert_array_equal(table[series.name].to_numpy(), Forecaster.load("m").predict())
        assert first in text
        assert f"{table[series.name][0]:.6g}" in text

    def test_counts_steps_where_times_do_not_go_on(self):
        pathlib_write("data.csv", "time,y", *(f"{t * t},{t % 5}" for t in range(60)))
        succeed("fit", "data.csv", "--horizon", 2, *QUICK, "-o", "m")
        text = succeed("forecast", "m", "-o", "out.csv")
        assert "steps are counted" in text
        assert pl.read_csv("out.csv")["step"].to_list() == [1, 2]

    def test_hours_are_written_to_the_minute(self):
        hours = np.datetime64("2024-01-01T00") + np.arange(60)
        pathlib_write("data.csv", "time,y", *(f"{hour}:00,{i % 5}" for i, hour in enumerate(hours)))
        succeed("fit", "data.csv", "--horizon", 2, *QUICK, "-o", "m")
        assert "2024-01-03T12:00" in succeed("forecast", "m")


class TestDescribe:
    @pytest.mark.parametrize("name", cells.__all__)
    def test_counts_the_parameters_of_a_layer(self, name):
        layer = recollect.nn.Recurrent(cells.by_name(name), 3, 7)
        count = sum(parameter.numel() for parameter in layer.parameters())
        text = succeed("describe", name, "--input-size", 3, "--hidden-size", 7)
        stated, formula = re.search(r"parameters  ([\d,]+) = (.*)  with I = 3, H = 7", text).groups()
        assert int(stated.replace(",", "")) == count
        assert eval(formula.replace("·", "*"), {"I": 3, "H": 7}) == count
        assert re.search(r"^source +\w", text, re.MULTILINE)

    def test_lists_all_cells(self):
        assert [line.split()[0] for line in succeed("describe").splitlines()] == list(cells.__all__)

    def test_cell_of_a_model_that_came_without_its_code(self):
        @recollect.cell(gates="a", states="h")
        def half(inp, rec, prev):
            return 0.5 * prev.h + torch.sin(inp.a + rec.a)

        Forecaster(2, 6, cell=half, hidden_size=4, epochs=1).fit(np.sin(np.arange(50.0))).save("m")
        text = succeed("describe", "--model", "m")
        assert "h[t] = 0.5 · h[t-1] + sin(x[t] · W_ia + b_ia + h[t-1] · W_ha + b_ha)" in text
        assert "H = 4" in text

    def test_draws_a_cell_with_its_equations(self):
        assert succeed("describe", "gru", "--html", "gru.html").endswith("Wrote gru.html\n")
        page = pathlib.Path("gru.html").read_text(encoding="utf-8")
        assert page.count("<svg") == 2
        assert page.count("<math") == 4

    def test_prints_latex_alone(self):
        assert succeed("describe", "lstm", "--latex").splitlines() == equations(cells.lstm.graph)

    def test_a_cell_in_a_file_of_the_users_own(self):
        pathlib_write("beside.py", "RATE = 0.25")
        pathlib_write("mine.py", *USERS_FILE)
        text = succeed("describe", "mine.py:leaky", "--hidden-size", 3, "--html", "leaky.html")
        assert "leaky: Keeps some of it." in text
        assert "h[t] = h[t-1] + 0.25 · (tanh(x[t] · W_ia + b_ia + h[t-1] · W_ha + b_ha) - h[t-1])" in text
        assert ">0.25</tspan>" in pathlib.Path("leaky.html").read_text(encoding="utf-8")
        assert succeed("describe", "mine.py") == succeed("describe", "mine.py:leaky")
        assert "mine" not in sys.modules

    def test_a_layer_that_save_wrote(self):
        recollect.save(recollect.nn.Recurrent(cells.mgu, 3, 5, bidirectional=True), "layer.safetensors")
        text = succeed("describe", "--model", "layer.safetensors")
        assert text.startswith("mgu: Minimal gated unit")
        assert "parameters  200 with I = 3, H = 5" in text

    def test_numbers_of_the_last_window(self, model_path):
        pathlib_write("data.csv", "time,y", *(f"{t},{t % 5}" for t in range(40)))
        arguments = ["describe", "--model", model_path, "--data", "data.csv", "--target", "y"]
        text = succeed(*arguments, "--step", 3, "--html", "step.html")
        model = Forecaster.load(model_path)
        contexts, targets = model.windows(np.arange(40.0) % 5)
        expected = describe(model.network_, contexts[-1:], targets[-1:], step=3).moment
        assert str(expected) in text
        assert expected.title.startswith("recurrent.l0 at step 3 of 0 to 9, L = ")
        page = pathlib.Path("step.html").read_text(encoding="utf-8")
        assert "lstm at step 3" in page
        assert "‖∂‖" in page
        assert "at step 9 of 0 to 9" in succeed(*arguments)
        assert_one_sentence(run(*arguments, "--step", 10), "no such step", "0 to 9")


USERS_FILE = [
    "import recollect, torch",
    "from beside import RATE",
    '@recollect.cell(gates="a", states="h")',
    "def leaky(inp, rec, prev):",
    '    """Keeps some of it."""',
    "    return prev.h + RATE * (torch.tanh(inp.a + rec.a) - prev.h)",
]


class TestBench:
    def test_an_example_writes_both_files(self, tmp_path):
        text = succeed("bench", "--only", "resets= over plain LSTM inf", "--budget", 2, "-o", tmp_path, "--threads", 1)
        assert "threads 1" in " ".join(text.split())
        rows = json.loads((tmp_path / "recollect-bench.json").read_text())["rows"]
        assert [row["title"] for row in rows] == ["resets= over plain LSTM"]
        assert f"{rows[0]['ratio']:.2f}×" in text
        assert "resets= over plain LSTM, inference" in (tmp_path / "recollect-bench.svg").read_text()

    def test_a_parity_failure_shows_no_speed_and_fails(self, monkeypatch):
        monkeypatch.setattr(benchmark_run, "PARITY", -1.0)
        result = run("bench", "--only", "resets= over plain LSTM inf", "--budget", 2)
        assert result.exit_code == 1
        assert "refused: resets= over plain LSTM inference" in result.stdout
        assert "×" not in result.stdout

    def test_a_peer_that_is_not_there_is_skipped_by_name(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "jaxlib", None)
        text = " ".join(succeed("bench", "--only", "JAX", "--budget", 2).split())
        assert "skipped: LSTM vs JAX: " in text
        assert "pip install 'recollect[bench]'" in text

    def test_nothing_is_measured_for_a_folder_that_is_not_there_or_a_name_that_is_no_subjects(self, monkeypatch):
        monkeypatch.setattr(benchmark_run, "measure", lambda *_, **__: pytest.fail("measured"))
        assert_one_sentence(run("bench", "-o", "nowhere"), "nowhere")
        assert_one_sentence(run("bench", "--only", "Mamba"), "Mamba", "GRU vs torch.nn")


class TestDatasets:
    def test_lists_name_and_source(self):
        text = " ".join(succeed("datasets").split())
        for name in datasets.names():
            assert name in text
            assert f"{len(datasets.load(name))}" in text

    def test_writes_what_can_be_read_back(self):
        succeed("datasets", "sunspots", "-o", "mine.csv")
        np.testing.assert_array_equal(datasets.read_series("mine.csv").values, datasets.load("sunspots").values)
        succeed("datasets", "co2_monthly")
        assert len(datasets.read_series("co2_monthly.csv")) == 526


def pathlib_write(path, *lines, encoding="utf-8"):
    with open(path, "w", encoding=encoding, newline="") as file:
        file.write("\n".join(lines) + "\n")


def assert_one_sentence(result, *says):
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.rstrip().endswith(errors[0])
    for word in says:
        assert word in errors[0]


ROWS = [f"{t},{t % 7}" for t in range(60)]

# What is in the file (None: there is none), and words that the sentence must have.
BAD_DATA = {
    "no such file": (None, ["no such file"]),
    "empty": (b"", ["empty"]),
    "white space": (b"\n \n\n", ["empty"]),
    "binary": (bytes(range(256)) * 8, ["binary"]),
    "zip": (b"PK\x03\x04" + bytes(100), ["binary"]),
    "UTF-16": ("\n".join(["time,y", *ROWS]).encode("utf-16"), ["UTF-16"]),
    "Latin-1": ("time,y\n" + "\n".join(ROWS) + "\n60,é\n").encode("latin-1") and "time,é\n1,2\n".encode("latin-1"),
    "header only": (b"time,y\n", ["no rows"]),
    "no header": ("\n".join(ROWS[8:]).encode(), ["no header"]),
    "missing column": ("\n".join(["time,yy", *ROWS]).encode(), ["'y'", "'yy'"]),
    "text in a number column": ("\n".join(["time,y", *ROWS, "60,many"]).encode(), ["'y'", "row 61", "many"]),
    "NaN": ("\n".join(["time,y", *ROWS, "60,NaN"]).encode(), ["row 61", "--fill linear|forward"]),
    "gap": ("\n".join(["time,y", *ROWS, "60,"]).encode(), ["row 61", "--fill linear|forward"]),
    "infinite": ("\n".join(["time,y", *ROWS, "60,inf"]).encode(), ["infinite", "row 61"]),
    "unsorted times": ("\n".join(["time,y", *ROWS, "3,1"]).encode(), ["not sorted", "row 61"]),
    "duplicate times": ("\n".join(["time,y", *ROWS, "59,1"]).encode(), ["repeat", "row 61"]),
    "unreadable time": ("\n".join(["time,y", *ROWS, "soon,1"]).encode(), ["time", "row 61", "soon"]),
    "too few rows": ("\n".join(["time,y", *ROWS[:8]]).encode(), ["too few rows"]),
    "one row": ("\n".join(["time,y", *ROWS[:1]]).encode(), ["too few rows"]),
    "ragged": ("\n".join(["time,y", *ROWS, "60,1,2"]).encode(), ["line 62"]),
}
BAD_DATA["Latin-1"] = ("time,y\n0,é\n".encode("latin-1"), ["UTF-8"])


class TestBadInput:
    @pytest.mark.parametrize(("content", "says"), BAD_DATA.values(), ids=BAD_DATA.keys())
    @pytest.mark.parametrize("command", ["fit", "backtest", "forecast", "diagnose"])
    def test_data(self, tmp_path, model_path, command, content, says):
        if content is not None:
            (tmp_path / "data.csv").write_bytes(content)
        if command in ("fit", "backtest"):
            output = ["-o", "m"] if command == "fit" else []
            result = run(command, "data.csv", "--target", "y", "--horizon", 3, *QUICK, *output)
        else:
            result = run(command, model_path, "data.csv")
            says = ["10 of context"] if command == "diagnose" and says == ["too few rows"] else says
            says = ["at least 10 rows"] if command == "forecast" and says == ["too few rows"] else says
        assert_one_sentence(result, *says)
        assert not (tmp_path / "m").exists()

    def test_bom_is_no_error(self, tmp_path):
        pathlib_write("data.csv", "time,y", *ROWS, encoding="utf-8-sig")
        succeed("fit", "data.csv", "--time", "time", "--target", "y", "--horizon", 3, *QUICK, "-o", "m")

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--cell", "gruu"], ["did you mean 'gru'"]),
            (["--target", "sunspot"], ["did you mean 'sunspots'"]),
            (["--time", "yeer"], ["did you mean 'year'"]),
            (["--horizon", "0"], ["horizon"]),
            (["--horizon", "300"], ["too few rows"]),
            (["--context-length", "1"], ["context_length"]),
            (["--context-length", "290"], ["too few rows"]),
            (["--horizon", str(10**12)], ["too few rows"]),
            (["--horizon", str(10**30)], ["horizon"]),
            (["--hidden-size", "0"], ["hidden_size"]),
            (["--hidden-size", str(2**40)], ["too large"]),
            (["--hidden-size", str(2**62)], ["too large"]),
            (["--context-length", str(10**15)], ["too few rows"]),
            (["--epochs", "-3"], ["epochs"]),
            (["--test-size", "2"], ["test_size"]),
            (["--test-size", "309"], ["test_size"]),
            (["--season-length", "0"], ["season_length"]),
            (["--seed", "-1"], ["seed"]),
            (["--seed", str(2**64)], ["seed"]),
            (["-o", "."], ["folder"]),
            (["-o", "no/where"], ["folder no does not exist"]),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_options(self, arguments, says):
        result = run("fit", "sunspots", "--horizon", 3, *QUICK, "-o", "m", *arguments)
        assert_one_sentence(result, *says)

    @pytest.mark.parametrize(
        "arguments", [["--series", "a"], ["--horizon", "x"], ["--fill", "zero"], ["--what"]], ids=str
    )
    def test_usage(self, arguments):
        result = run("fit", "sunspots", "--horizon", 3, "-o", "m", *arguments)
        assert_one_sentence(result, arguments[0])

    @pytest.mark.parametrize("command", [["forecast"], ["describe", "--model"]], ids=" ".join)
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (None, "No such file"),
            (b"", "truncated"),
            (b"time,y\n" * 100, "not a Recollect model file"),
            (b"\x80\x04K\x01.", "pickle"),
            ("half", "truncated"),
            ("altered", "altered"),
            ("layers", r"recollect.load"),
        ],
        ids=str,
    )
    def test_model(self, tmp_path, model_path, command, content, says):
        path = tmp_path / "other"
        if content == "layers":
            recollect.save(torch.nn.Linear(2, 3), path)
        elif isinstance(content, str):
            data = bytearray(model_path.read_bytes())
            data[-1] ^= content == "altered"
            path.write_bytes(data[: len(data) // 2] if content == "half" else data)
        elif content is not None:
            path.write_bytes(content)
        if content == "layers" and command[0] == "describe":
            says = "no recurrent layer to describe; given: Linear"
        assert_one_sentence(run(*command, path), says)

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("mine.py:leaky", None, ["no file mine.py", "FILE.py:NAME"]),
            ("mine.py:leeky", USERS_FILE, ["no cell 'leeky'", "did you mean mine.py:leaky?"]),
            ("mine.py", [*USERS_FILE, "two = recollect.cells.gru"], ["has 2 cells", "leaky, two", "mine.py:NAME"]),
            ("mine.py", ["x = 1"], ["has 0 cells", "decorated with recollect.cell"]),
            ("mine.py:leaky", ["1 / 0"], ["could not be run", "ZeroDivisionError"]),
            ("mine.py:leaky", ["def leaky(:"], ["could not be run", "SyntaxError"]),
            ("mine.py:leaky", ["raise SystemExit(3)"], ["could not be run", "SystemExit: 3"]),
            ("mine.py:leaky", [line.replace("torch.tanh", "torch.cumsum") for line in USERS_FILE], ["torch.cumsum"]),
        ],
        ids=str,
    )
    def test_cells_in_files(self, name, content, says):
        pathlib_write("beside.py", "RATE = 0.25")
        if content is not None:
            pathlib_write("mine.py", *content)
        assert_one_sentence(run("describe", name), *says)

    def test_layers_alone_take_no_series(self):
        recollect.save(recollect.nn.LSTM(1, 2), "layer.safetensors")
        result = run("describe", "--model", "layer.safetensors", "--data", "sunspots")
        assert_one_sentence(result, "layers alone", "recollect.diagnosis.describe")

    def test_other_commands(self, tmp_path):
        assert_one_sentence(run("describe", "lstn"), "did you mean 'lstm'")
        assert_one_sentence(run("describe", "lstm", "--model", "m"), "not both")
        assert_one_sentence(run("describe", "lstm", "--data", "sunspots"), "--data needs --model")
        assert_one_sentence(run("describe", "lstm", "--html", "no/where.html"), "folder no does not exist")
        assert_one_sentence(run("datasets", "sunspot"), "did you mean 'sunspots'")
        assert_one_sentence(run("datasets", "-o", "all.csv"), "which series")
        succeed("datasets", "sunspots")
        assert_one_sentence(run("datasets", "sunspots"), "exists")
        assert_one_sentence(run("datasets", "sunspots", "-o", "no/where.csv"), "cannot be written")
        assert_one_sentence(run("fitt"), "fitt")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    series = datasets.Series("y", np.arange(60.0) % 7, np.arange(60), None, "", "")
    Forecaster(3, 10, hidden_size=4, epochs=1).fit(series).save(path)
    return path
