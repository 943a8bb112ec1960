"""Real signals: kill -9 at any moment, and Ctrl-C."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import sys
import time

import pytest
from resumed_run import STEPS, interrupted, recorded, regression, run, to_be_killed, weights
from toy_run import OPTIMIZERS, SCHEDULERS, KillAt, Resumptions, Toy, assert_same_runs, same, toy_run

from recollect.training import Checkpoints

pytestmark = pytest.mark.usefixtures("same_bits_and_no_wait")


class SignalAt(KillAt):
    def on_step(self, step, loss, clipped):
        if (self.epoch, step) == self.at:
            signal.raise_signal(signal.SIGINT)


def test_the_same_objects_can_go_on_after_ctrl_c(tmp_path):
    # As in a notebook: model, optimizer and scheduler are no longer as they were made.
    straight = toy_run(make_scheduler=SCHEDULERS["Step"])
    model = Toy()
    optimizer = OPTIMIZERS["SGD momentum"](list(model.parameters()))
    scheduler = SCHEDULERS["Step"](optimizer)
    arguments = {
        "make_model": lambda: model,
        "make_optimizer": lambda _: optimizer,
        "make_scheduler": lambda _: scheduler,
        "checkpoint": Checkpoints(tmp_path / "c", every=1),
    }
    for epoch in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            toy_run(observers=[SignalAt(epoch, 1)], **arguments)
    assert_same_runs(toy_run(**arguments), straight)


def test_ctrl_c_twice_does_not_wait(tmp_path):
    def loss(output, y):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was held back too")

    with pytest.raises(KeyboardInterrupt):
        toy_run(checkpoint=tmp_path / "c", loss=loss)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_runs(toy_run(checkpoint=tmp_path / "c"), toy_run())


def test_a_handler_of_the_callers_stays(tmp_path):
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        toy_run(checkpoint=tmp_path / "c", observers=[SignalAt(1, 1)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]


def test_ctrl_c_that_also_ends_the_workers_of_a_loader_leaves_a_checkpoint(tmp_path):
    class Dying:
        """Its third batch never comes: the signal went to the process that loads it, too."""

        def __len__(self):
            return 4

        def __iter__(self):
            yield from [regression(4).tensors] * 2
            if not dead:
                dead.append(1)
                signal.raise_signal(signal.SIGINT)
                raise RuntimeError("DataLoader worker exited unexpectedly")
            yield from [regression(4).tensors] * 2

    dead = [1]
    straight = toy_run(batches=Dying())
    dead.clear()
    with pytest.raises(KeyboardInterrupt):
        toy_run(batches=Dying(), checkpoint=tmp_path / "c")
    resumptions = Resumptions()
    assert_same_runs(toy_run(batches=Dying(), checkpoint=tmp_path / "c", observers=[resumptions]), straight)
    assert resumptions.seen == [(0, 2)]


@pytest.fixture(scope="module")
def processes():
    """Processes that have imported everything when they begin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["resumed_run"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()
    return context


def kill_and_resume(tmp_path, processes, kills, epochs, seed):
    """Kill a run with SIGKILL at random moments, then let it end; return how often it was killed within."""
    chance, folder, killed_at = random.Random(seed), tmp_path / "killed", []
    folder.mkdir()
    path = folder / "run.checkpoint"
    while len(killed_at) < kills:
        process = processes.Process(target=to_be_killed, args=(folder, epochs))
        before = path.stat().st_mtime_ns if path.exists() else 0
        process.start()
        while process.is_alive() and (not path.exists() or path.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed_at.append(path.stat().st_mtime_ns)
    process = processes.Process(target=to_be_killed, args=(folder, epochs))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return folder, len(set(killed_at))


def check_kills(tmp_path, processes, kills, epochs, seed):
    straight = tmp_path / "straight"
    straight.mkdir()
    recorded(straight, epochs, checkpoint=False)
    folder, killed = kill_and_resume(tmp_path, processes, kills, epochs, seed)
    assert killed == kills, "the run was over too soon to be killed so often"
    assert (folder / "weights").read_bytes() == (straight / "weights").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["history.jsonl", "run.checkpoint", "weights"]
    lines, expected = (
        [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for line in (each / "history.jsonl").read_text().splitlines()
        ]
        for each in (folder, straight)
    )
    assert lines == expected
    assert len(lines) == epochs * (STEPS + 1)


def test_kill_9_at_random_moments_changes_no_bit(tmp_path, processes):
    check_kills(tmp_path, processes, kills=5, epochs=40, seed=0)


@pytest.mark.slow
def test_kill_9_at_20_random_moments_changes_no_bit(tmp_path, processes):
    check_kills(tmp_path, processes, kills=20, epochs=150, seed=1)


def test_a_real_ctrl_c_keeps_the_best_weights_and_leaves_a_checkpoint(tmp_path, processes):
    process = processes.Process(target=interrupted, args=(tmp_path, 3))
    process.start()
    process.join(120)
    assert process.exitcode == 130
    best = weights(run(epochs=3)[0])
    assert (tmp_path / "weights").read_bytes() == best
    resumptions = Resumptions()
    model, history = run(tmp_path, every=None, observers=[resumptions])
    straight, expected = run()
    # It fell within the first step of the epoch; the step was finished and written down.
    assert resumptions.seen == [(3, 1)]
    assert weights(model) == weights(straight) != best
    assert same(history, expected)
