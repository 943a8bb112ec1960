"""Observers: the file is whole at every moment, and the bar keeps out of logs."""

import io
import json
import math

import pytest
import torch
from rich.console import Console
from torch import nn

from recollect import _files
from recollect.errors import InputError
from recollect.training import Clipped, History, HistoryFile, ProgressBar, train

STEP = Clipped(norm=2.0, scale=0.5, clipped=True, finite=True)


def history(epochs, best_epoch=None):
    return History(
        train_loss=[0.5] * epochs,
        validation_loss=[] if best_epoch is None else [0.25] * epochs,
        gradient_norm=[math.nan] * epochs,
        clipped_fraction=[0.1] * epochs,
        skipped_steps=[0] * epochs,
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


def test_history_file_holds_the_history_as_strict_json(tmp_path):
    path = tmp_path / "history.json"
    model = nn.Linear(1, 1)
    batches = [(torch.ones(4, 1), torch.zeros(4, 1))]
    done = train(
        model,
        batches,
        loss=nn.functional.mse_loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        epochs=3,
        validation=batches,
        observers=[HistoryFile(path)],
    )
    assert History(**json.loads(path.read_text())) == done
    assert [entry.name for entry in tmp_path.iterdir()] == ["history.json"]


def test_nan_is_null():
    assert json.loads(history(2).to_json())["gradient_norm"] == [None, None]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "history.json"
    observer = HistoryFile(path)
    observer.on_epoch(0, history(1))
    before = path.read_text()

    def crash(source, target):
        raise OSError("the disk is gone")

    monkeypatch.setattr(_files.os, "replace", crash)
    with pytest.raises(OSError, match="the disk is gone"):
        observer.on_epoch(1, history(2))
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["history.json"]


def test_a_folder_that_is_missing_is_noticed_before_training(tmp_path):
    with pytest.raises(InputError, match="folder that exists"):
        HistoryFile(tmp_path / "nowhere" / "history.json")


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
