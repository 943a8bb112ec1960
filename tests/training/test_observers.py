"""The progress bar: it says what matters, and keeps out of logs."""

import io
import math

import pytest
from rich.console import Console

from recollect.training import Clipped, History, ProgressBar

STEP = Clipped(norm=2.0, scale=0.5, clipped=True, finite=True)


def history(epochs, best_epoch=None, skipped=0):
    return History(
        train_loss=[0.5] * epochs,
        validation_loss=[] if best_epoch is None else [0.25] * epochs,
        gradient_norm=[math.nan] * epochs,
        clipped_fraction=[0.1] * epochs,
        skipped_steps=[skipped] * epochs,
        seconds=[1.0] * epochs,
        best_epoch=best_epoch,
    )


def play(observer, epochs, steps=2, best_epoch=None):
    observer.on_train_begin(epochs, steps)
    for epoch in range(epochs):
        for step in range(steps or 2):
            observer.on_step(step, 0.5, STEP)
        observer.on_epoch(epoch, history(epoch + 1, best_epoch))
    observer.on_train_end(history(epochs, best_epoch))


@pytest.mark.parametrize("forced", [False, True])
def test_a_redirected_bar_is_a_few_plain_lines(forced):
    file = io.StringIO()
    # force_terminal is what FORCE_COLOR in the environment comes to.
    play(ProgressBar(Console(file=file, force_terminal=forced, color_system=None)), epochs=200, best_epoch=4)
    lines = file.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "epoch 1/200  loss 0.5  val 0.25  grad nan  clip 10%"
    assert lines[-1] == ("trained 200/200 epochs in 200.0 s; kept epoch 5: loss 0.5  val 0.25  grad nan  clip 10%")
    assert "\x1b" not in file.getvalue()


def test_the_default_bar_leaves_standard_output_clean(capsys):
    play(ProgressBar(), epochs=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("trained 1/1 epochs")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("steps", [2, None])
def test_on_a_terminal_the_bar_fills_and_standard_output_is_not_taken(steps, capsys):
    file = Terminal()
    bar = ProgressBar(Console(file=file, force_terminal=True, force_interactive=True, width=150))
    bar.on_train_begin(4, steps)
    print("a redirected result")
    play_rest(bar, steps)
    shown = file.getvalue()
    assert "epoch 4/4" in shown
    assert "grad nan  clip 10%" in shown
    assert "trained 4/4 epochs" in shown
    assert capsys.readouterr().out == "a redirected result\n"


def play_rest(bar, steps):
    for epoch in range(4):
        for step in range(steps or 2):
            bar.on_step(step, 0.5, STEP)
        bar.on_epoch(epoch, history(epoch + 1))
    assert bar._progress.finished
    bar.on_train_end(history(4))


def test_skipped_steps_are_reported():
    file = io.StringIO()
    bar = ProgressBar(Console(file=file, width=150))
    bar.on_train_begin(2, 10)
    bar.on_epoch(0, history(1, skipped=3))
    bar.on_train_end(history(2, skipped=3))
    first, last = file.getvalue().splitlines()
    assert first.endswith("clip 10%  skipped 3")
    assert last.endswith("; skipped 6 steps whose loss or gradient was not finite")


@pytest.mark.parametrize(
    ("step", "line"), [(0, "resumed after epoch 2 of 4"), (1, "resumed after epoch 2, step 1 of 4")]
)
@pytest.mark.parametrize("steps", [2, None])
def test_a_resumption_is_one_line_and_the_bar_goes_on_from_there(step, line, steps):
    for file in (io.StringIO(), Terminal()):
        bar = ProgressBar(Console(file=file, force_terminal=file.isatty(), force_interactive=file.isatty(), width=150))
        bar.on_train_begin(4, steps)
        bar.on_resume(2, step, history(2))
        assert f"{line} epochs" in file.getvalue()
        if file.isatty():
            for done in range(step, steps or 2):
                bar.on_step(done, 0.5, STEP)
            bar.on_epoch(2, history(3))
            for done in range(steps or 2):
                bar.on_step(done, 0.5, STEP)
            bar.on_epoch(3, history(4))
            assert bar._progress.finished
        bar.on_train_end(history(4))
