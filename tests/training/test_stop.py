"""An observer ends a run: what is kept, who is told, and that a stopped run is over."""

from __future__ import annotations

import io
import signal

import pytest
import torch
from resumed_run import regression, weights
from rich.console import Console
from toy_run import KillAt, Killed, Resumptions, Toy, same, toy_run

from recollect.training import Checkpoints, HistoryFile, Observer, ProgressBar, StopTraining

pytestmark = pytest.mark.usefixtures("same_bits_and_no_wait")
METHODS = ("on_train_begin", "on_resume", "on_step", "on_skip", "on_epoch", "on_train_end")
NAN = (regression(4).tensors[0] * float("nan"), regression(4).tensors[1])
SKIPPING = [regression(4).tensors, NAN, *[regression(4).tensors] * 2]


class Told(Observer):
    """Notes all that it hears; ends the run at the ``number``-th call of ``method``."""

    def __init__(self, method=None, number=1):
        self.seen, self.method, self.number = [], method, number

    def __getattribute__(self, name):
        if name not in METHODS:
            return super().__getattribute__(name)

        def hear(*arguments):
            self.seen.append(name)
            if name == self.method and self.seen.count(name) == self.number:
                raise StopTraining("enough is known")

        return hear

    def on_skip(self, step, look):
        """It is asked for by being there."""


@pytest.mark.parametrize("method", [name for name in METHODS if name != "on_resume"])
def test_any_method_may_end_the_run_and_everybody_hears_all_of_it(method):
    first, stopper, last = Told(), Told(method), Told()
    _, history, _ = toy_run(observers=[first, stopper, last], batches=SKIPPING)
    assert first.seen == stopper.seen == last.seen
    assert first.seen.count("on_train_end") == 1
    assert first.seen[-1] == "on_train_end"
    if method == "on_train_end":  # the run is over already
        assert history.stopped is None
        assert len(history.train_loss) == 3
    else:
        assert history.stopped == "enough is known"
        assert first.seen[-2] == method
        assert len(history.train_loss) == (1 if method == "on_epoch" else 0)


def test_the_model_keeps_the_best_weights_of_the_finished_epochs():
    # Stopped in the third epoch, it has the best of the first two; in the first, what it had come to.
    two = toy_run(epochs=2)
    model, history, _ = toy_run(observers=[Told("on_step", 10)])
    assert weights(model) == weights(two[0])
    assert history.train_loss == two[1].train_loss
    model, history, _ = toy_run(observers=[Told("on_step", 4)])
    assert history.best_epoch is None
    assert weights(model) == weights(toy_run(epochs=1, validation=None)[0])
    assert weights(model) != weights(Toy())
    assert not history.train_loss


def test_a_stop_leaves_the_modes_and_the_random_state():
    model = Toy().eval()
    before = torch.get_rng_state()
    toy_run(make_model=lambda: model, observers=[Told("on_step")])
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())


class Untouchable:
    def __len__(self):
        return 4

    def __iter__(self):
        raise AssertionError("the run was over")


@pytest.mark.parametrize(("method", "number"), [("on_train_begin", 1), ("on_step", 1), ("on_step", 7), ("on_epoch", 2)])
@pytest.mark.parametrize("seed", [0, None])
def test_a_stopped_run_is_over_for_its_checkpoint_too(tmp_path, method, number, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model, history, _ = toy_run(checkpoint=tmp_path / "c", observers=[Told(method, number)], seed=seed)
        after = torch.get_rng_state()
        # The same call again, without anybody who stops it, and with more epochs: there is nothing left to do.
        for epochs in (3, 9):
            told = Told()
            arguments = {"batches": Untouchable(), "validation": Untouchable(), "epochs": epochs, "seed": seed}
            again, found, _ = toy_run(checkpoint=tmp_path / "c", observers=[told], **arguments)
            assert weights(again) == weights(model)
            assert found == history
            assert found.stopped == "enough is known"
            assert told.seen == ["on_train_begin", "on_resume", "on_train_end"]
            assert seed is not None or torch.equal(torch.get_rng_state(), after)


def test_a_run_killed_before_its_stop_was_written_stops_again(tmp_path):
    straight = toy_run(observers=[Told("on_step", 7)])

    class StopAt(Observer):
        epoch = 0

        def on_resume(self, epoch, step, history):
            self.epoch = epoch

        def on_step(self, step, loss, clipped):
            if (self.epoch, step) == (1, 2):
                raise StopTraining("enough is known")

        def on_epoch(self, epoch, history):
            self.epoch = epoch + 1

    checkpoint = Checkpoints(tmp_path / "c", every=1)
    with pytest.raises(Killed):
        toy_run(checkpoint=checkpoint, observers=[StopAt(), KillAt(1, 2)])
    resumptions = Resumptions()
    model, history, _ = toy_run(checkpoint=checkpoint, observers=[resumptions, StopAt()])
    assert resumptions.seen == [(1, 2)]
    assert weights(model) == weights(straight[0])
    assert same(history, straight[1])


def test_a_stop_on_resumption(tmp_path):
    with pytest.raises(Killed):
        toy_run(checkpoint=Checkpoints(tmp_path / "c", every=1), observers=[KillAt(1, 2)])
    stopper, last = Told("on_resume"), Told()
    _, history, _ = toy_run(checkpoint=tmp_path / "c", observers=[stopper, last], batches=Untouchable())
    assert stopper.seen == last.seen == ["on_train_begin", "on_resume", "on_train_end"]
    assert (history.stopped, len(history.train_loss)) == ("enough is known", 1)


def test_an_error_of_an_observer_is_raised_and_ends_are_told_to_those_who_heard_the_beginning():
    class Broken(Observer):
        def on_train_begin(self, epochs, steps):
            raise ZeroDivisionError

    first, last = Told(), Told()
    with pytest.raises(ZeroDivisionError):
        toy_run(observers=[first, Broken(), last])
    assert first.seen == ["on_train_begin", "on_train_end"]
    assert last.seen == []


def test_ctrl_c_in_the_step_of_a_stop_is_not_lost(tmp_path):
    class Interrupt(Observer):
        def on_step(self, step, loss, clipped):
            signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            toy_run(checkpoint=tmp_path / "c", observers=[Interrupt(), Told("on_step")])
    finally:
        signal.signal(signal.SIGINT, previous)
    assert toy_run(checkpoint=tmp_path / "c", batches=Untouchable())[1].stopped == "enough is known"


def test_records_of_a_run_that_was_stopped(tmp_path):
    shown = io.StringIO()
    observers = [Told("on_epoch", 2), HistoryFile(tmp_path / "h"), ProgressBar(Console(file=shown, width=200))]
    toy_run(observers=observers)
    assert len((tmp_path / "h").read_text().splitlines()) == 2
    last = shown.getvalue().splitlines()[-1]
    assert last.startswith("trained 2/3 epochs")
    assert last.endswith("; stopped: enough is known")
    shown = io.StringIO()
    toy_run(observers=[Told("on_step"), ProgressBar(Console(file=shown, width=200))])
    assert shown.getvalue().splitlines() == ["stopped before the end of the first epoch: enough is known"]
