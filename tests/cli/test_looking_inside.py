"""``recollect diagnose`` and ``recollect fit --html``: what they measure, prove and write."""

import pathlib

import pytest
import torch
from typer.testing import CliRunner

from recollect import Forecaster, datasets
from recollect.cli.app import app

QUICK = {"context_length": 24, "hidden_size": 4, "epochs": 1}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def healthy():
    Forecaster(3, **QUICK, forget_bias=2.0).fit(datasets.load("sunspots")).save("m")
    return "m"


@pytest.fixture
def forgetful():
    model = Forecaster(3, **QUICK).fit(datasets.load("sunspots"))
    with torch.no_grad():
        for parameter in model.network_.recurrent.parameters():
            parameter.mul_(0.1)  # W_hh hands hardly anything on
        model.network_.recurrent.bias_ih_l0[4:8] = -2.0  # and c is forgotten at once
    model.save("m")
    return "m"


def test_the_short_form(healthy):
    text = run("diagnose", healthy, "sunspots")
    assert text.startswith("The gradient is healthy: recurrent.l0.h, 24 steps\n")
    assert "gradient horizon" in text
    assert not list(pathlib.Path.cwd().glob("*.html"))


def test_a_remedy_is_proved(forgetful):
    text = run("diagnose", forgetful, "sunspots", "--prove")
    assert text.startswith("The gradient vanishes")
    assert "\nThe remedy for vanishing " in text
    for word in ("as it is", "with the remedy", "loss at the start", "gradient horizon"):
        assert word in text


def test_nothing_is_to_be_proved_where_nothing_is_wrong(healthy):
    assert "Nothing to prove" in run("diagnose", healthy, "sunspots", "--prove")


def test_a_window_is_judged(healthy):
    assert "window_too_short" in run("diagnose", healthy, "sunspots", "--window", 2)
    assert "window_too_short" not in run("diagnose", healthy, "sunspots", "--window", 24)


def test_the_page_is_thorough_unless_it_shall_be_quick(healthy):
    assert run("diagnose", healthy, "sunspots", "--html", "quick.html", "--quick").endswith("Wrote quick.html\n")
    assert run("diagnose", healthy, "sunspots", "--html", "whole.html").endswith("Wrote whole.html\n")
    quick, whole = (pathlib.Path(f"{name}.html").read_text(encoding="utf-8") for name in ("quick", "whole"))
    for said in ("Lyapunov", "Error surface", "replaced"):
        assert said not in quick
        assert said in whole


def test_thorough_in_the_terminal(healthy):
    quick, thorough = run("diagnose", healthy, "sunspots"), run("diagnose", healthy, "sunspots", "--thorough")
    assert "memory" not in quick
    assert "memory" in thorough


def test_a_fit_that_is_watched_shows_its_training():
    text = run("fit", "sunspots", "--horizon", 3, "--epochs", 2, "--hidden-size", 4, "--context-length", 8, "-o", "m",
               "--html", "fit.html")  # fmt: skip
    assert text.endswith("Wrote fit.html\n")
    page = pathlib.Path("fit.html").read_text(encoding="utf-8")
    assert "Training" in page
    watched = Forecaster.load("m").predict()
    plain = Forecaster(3, epochs=2, hidden_size=4, context_length=8).fit(datasets.load("sunspots")).predict()
    assert watched.tolist() == plain.tolist()  # a probe changes no bit
