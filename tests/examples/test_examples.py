"""The examples do what they say, at the sizes at which they are shown."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    text = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'load("{path.stem}")' in text


def test_sine_to_cosine_with_the_state_carried():
    assert load("sine_to_cosine").main() < 0.01


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_by_rows(kind, seed):
    assert load("digits_by_rows").main(kind, seed) >= 0.95


@pytest.mark.parametrize("seed", [0, 1])
def test_custom_cell_learns_to_add(seed):
    assert load("custom_cell").main(seed=seed) < 0.02


def test_a_stream_that_goes_on_after_a_crash():
    assert load("stream_forever").main() < 1e-6


def test_error_surface(tmp_path):
    surface = load("error_surface").main(tmp_path / "out" / "error_surface.html")
    assert surface.cliffs.any()
    jump, clipped = surface.jumps
    assert jump > 100 * clipped
    assert surface.path_losses["descent"][-1] > 0.08
    assert surface.path_losses["descent, clipped"].min() < 1e-5
    assert "<svg" in (tmp_path / "out" / "error_surface.html").read_text(encoding="utf-8")


def test_demo(tmp_path, capsys):
    demo = load("demo")
    report = tmp_path / "out" / "demo.html"
    errors = demo.main(report=report)
    baselines = {"naive", "seasonal naive", "drift"}
    assert set(errors) == {*demo.NETWORKS, *baselines}
    assert max(errors[name] for name in demo.NETWORKS) < min(errors[name] for name in baselines)
    shown = capsys.readouterr().out
    for words in (*errors, "before training", "after training", str(report)):
        assert words in " ".join(shown.split())
    page = report.read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    for words in (*demo.NETWORKS, *baselines):
        assert words in page
    assert "http" not in page.replace("http-equiv", "")
