"""What is written down of a run: whole lines, each epoch once, whatever happened in between."""

import dataclasses
import json
import math
import sys
import types
from typing import ClassVar

import pytest
import torch
from torch import nn

from recollect.errors import InputError, MissingPackageError
from recollect.training import Clipped, History, HistoryFile, Observer, TensorBoard, train


def history(epochs):
    return History(
        train_loss=[0.5 * epoch for epoch in range(epochs)],
        gradient_norm=[math.nan] * epochs,
        clipped_fraction=[0.1] * epochs,
        skipped_steps=[0] * epochs,
        learning_rate=[0.1] * epochs,
        seconds=[1.0] * epochs,
    )


def step_of(number):
    return Clipped(norm=float(number), scale=0.5, clipped=True, finite=number != 1)


def play(observer, epochs, *, after=(0, 0), resumed=None):
    """Two steps an epoch, up to but not with step and epoch ``epochs``."""
    observer.on_train_begin(9, 2)
    epoch, step = after
    if resumed or after != (0, 0):
        observer.on_resume(epoch, step, history(epoch))
    for each in range(epoch, epochs):
        for number in range(step if each == epoch else 0, 2):
            observer.on_step(number, math.inf if number else 0.5, step_of(number))
        observer.on_epoch(each, history(each + 1))
    return observer


def lines(path):
    assert path.read_text().endswith("\n")
    return [json.loads(line) for line in path.read_text().splitlines()]


def epoch_line(epoch):
    return {
        "epoch": epoch,
        "train_loss": 0.5 * epoch,
        "gradient_norm": None,
        "clipped_fraction": 0.1,
        "skipped_steps": 0,
        "learning_rate": 0.1,
        "seconds": 1.0,
    }


def step_lines(epoch):
    return [
        {"epoch": epoch, "step": 0, "loss": 0.5, "gradient_norm": 0.0, "skipped": False},
        {"epoch": epoch, "step": 1, "loss": None, "gradient_norm": 1.0, "skipped": True},
    ]


def expected(epochs, *, steps):
    return [line for epoch in range(epochs) for line in [*(step_lines(epoch) if steps else []), epoch_line(epoch)]]


both = pytest.mark.parametrize("steps", [False, True])


@both
def test_one_line_an_epoch_as_it_ends(tmp_path, steps):
    path = tmp_path / "history.jsonl"
    path.write_text("an older run\n")
    observer = HistoryFile(path, steps=steps)
    observer.on_train_begin(9, 2)
    assert path.read_text() == "an older run\n"  # it may be the one that is resumed
    for epochs in range(1, 4):
        play(observer, epochs)
        assert lines(path) == expected(epochs, steps=steps)


def test_the_lines_are_those_of_the_history(tmp_path):
    path = tmp_path / "history.jsonl"
    model, batches = nn.Linear(1, 1), [(torch.ones(4, 1), torch.zeros(4, 1))]
    done = train(
        model,
        batches,
        loss=nn.functional.mse_loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        epochs=3,
        validation=batches,
        observers=[HistoryFile(path)],
    )
    found = lines(path)
    columns = {name: [line[name] for line in found] for name in found[0]}
    assert columns.pop("epoch") == [0, 1, 2]
    assert History(**columns, best_epoch=2) == done
    assert set(columns) == {field.name for field in dataclasses.fields(History)} - {"best_epoch", "metrics", "stopped"}


@both
@pytest.mark.parametrize("after", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0)])
@pytest.mark.parametrize("torn", ["", '{"epoch": 3, "st', '{"epoch": 0, "step": 0, "los', "\n\0\xff", "null\n7\n"])
def test_a_resumption_cuts_back_mends_and_repeats_nothing(tmp_path, steps, after, torn):
    path = tmp_path / "history.jsonl"
    play(HistoryFile(path, steps=steps), 3)
    with open(path, "a", encoding="latin-1") as file:
        file.write(torn)
    play(HistoryFile(path, steps=steps), 4, after=after, resumed=True)
    assert lines(path) == expected(4, steps=steps)


@pytest.mark.parametrize("after", [(1, 1), (2, 0)])
def test_epochs_that_are_missing_come_back(tmp_path, after):
    # Killed between the checkpoint and the line, or begun without this observer.
    path = tmp_path / "history.jsonl"
    play(HistoryFile(path), 3, after=after)
    assert lines(path) == expected(3, steps=False)


def test_a_folder_that_is_missing_is_noticed_before_training(tmp_path):
    with pytest.raises(InputError, match="folder that exists"):
        HistoryFile(tmp_path / "nowhere" / "history.jsonl")


class Writer:
    """What TensorBoard's SummaryWriter is asked to do."""

    made: ClassVar[list] = []

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step, self.scalars, self.events = folder, purge_step, [], []
        self.made.append(self)

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def flush(self):
        self.events.append(("flush", len(self.scalars)))

    def close(self):
        self.events.append(("close", len(self.scalars)))


@pytest.fixture
def writers(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_tensorboard_gets_every_number_of_every_epoch(tmp_path, writers):
    observer = play(TensorBoard(tmp_path), 2)
    observer.on_train_end(history(2))
    (writer,) = writers
    assert (writer.folder, writer.purge_step) == (str(tmp_path), None)
    assert [each for each in writer.scalars if each[0] in ("train_loss", "learning_rate")] == [
        ("train_loss", 0.0, 0),
        ("learning_rate", 0.1, 0),
        ("train_loss", 0.5, 1),
        ("learning_rate", 0.1, 1),
    ]
    assert writer.events == [("flush", 6), ("flush", 12), ("close", 12)]


def test_tensorboard_hides_what_is_done_again(tmp_path, writers):
    play(TensorBoard(tmp_path), 3, after=(1, 1))
    (writer,) = writers
    assert writer.purge_step == 1
    assert {step for _, _, step in writer.scalars} == {1, 2}


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match=r"pip install recollect\[tensorboard\]"):
        TensorBoard(tmp_path)
    with pytest.raises(ImportError):
        TensorBoard(tmp_path)


def test_a_real_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epochs, after in ((2, (0, 0)), (4, (1, 0))):
        play(TensorBoard(tmp_path), epochs, after=after).on_train_end(history(epochs))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [
        (epoch, 0.5 * epoch) for epoch in range(4)
    ]


def test_observers_need_not_hear_everything():
    class Silent(Observer):
        pass

    play(Silent(), 2, after=(1, 0)).on_train_end(history(2))
