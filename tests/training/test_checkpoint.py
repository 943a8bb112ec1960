"""Checkpoints: a run that is cut off anywhere goes on, and ends with the same bits."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from resumed_run import EPOCHS, interrupted, recorded, regression, run, to_be_killed, weights
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

import recollect
from recollect import _files
from recollect.errors import InputError, TrainingError
from recollect.model_file import read_model, write_model
from recollect.training import Checkpoints, Observer, train
from recollect.training.packing import pack, unpack

MSE = nn.functional.mse_loss
STEPS = 3  # in an epoch of `run`: 6 batches in pairs


@pytest.fixture(autouse=True)
def _one_thread_and_no_wait_for_the_disk(monkeypatch):
    """The same bits need the same number of threads; only a crash of the machine needs a file on the disk."""
    torch.set_num_threads(1)
    monkeypatch.setattr(_files.os, "fsync", lambda handle: None)


class Killed(BaseException):
    """Nothing in the loop can be prepared for it."""


class KillAt(Observer):
    """Ends a run right after a step: the checkpoint of that step is not written any more."""

    def __init__(self, epoch, step):
        self.at, self.epoch = (epoch, step), 0

    def on_resume(self, epoch, step, history):
        self.epoch = epoch

    def on_step(self, step, loss, clipped):
        if (self.epoch, step) == self.at:
            raise Killed

    def on_epoch(self, epoch, history):
        self.epoch = epoch + 1


class Resumptions(Observer):
    def __init__(self):
        self.seen = []

    def on_resume(self, epoch, step, history):
        self.seen.append((epoch, step))


def same(history, other):
    return dataclasses.replace(history, seconds=[]) == dataclasses.replace(other, seconds=[])


@pytest.mark.parametrize("every", [1, 2, None])
def test_a_run_cut_off_again_and_again_ends_with_the_same_bits(tmp_path, every):
    straight, expected = run()
    resumptions = Resumptions()
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            torch.rand(step)  # what was drawn since does not matter
            with pytest.raises(Killed):
                run(tmp_path, every=every, observers=[KillAt(epoch, step), resumptions])
    model, history = run(tmp_path, every=every, observers=[resumptions])
    assert weights(model) == weights(straight)
    assert same(history, expected)
    assert len(history.seconds) == EPOCHS
    if every == 1:
        # Killed before the checkpoint of step k was written, it goes on with step k.
        assert resumptions.seen == [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)]
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoint"]


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "Adam lr tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "groups": lambda p: torch.optim.SGD([{"params": p[:2]}, {"params": p[2:], "lr": 0.1}], lr=0.01, momentum=0.9),
}
SCHEDULERS = {
    "Lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "Multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "Step": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStep": lambda o: lr_scheduler.MultiStepLR(o, [1, 2, 9]),
    "Constant": lambda o: lr_scheduler.ConstantLR(o),
    "Linear": lambda o: lr_scheduler.LinearLR(o),
    "Exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "Sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 5)], [3]
    ),
    "Polynomial": lambda o: lr_scheduler.PolynomialLR(o),
    "CosineAnnealing": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "Chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)]),
    "ReduceOnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "Cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.01, 3, cycle_momentum=False),
    "WarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=100, cycle_momentum=False),
}


class Toy(nn.Module):
    """Cheaper than `network`."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def forward(self, x):
        return self.layers(x)


def toy_run(make_optimizer=OPTIMIZERS["SGD momentum"], make_scheduler=None, make_model=Toy, **arguments):
    model = make_model()
    optimizer = make_optimizer(list(model.parameters()))
    arguments = {
        "batches": DataLoader(regression(16), batch_size=4, shuffle=True),
        "loss": MSE,
        "epochs": 3,
        "validation": [regression(8).tensors],
        "scheduler": make_scheduler and make_scheduler(optimizer),
        "seed": 0,
        **arguments,
    }
    history = train(model, optimizer=optimizer, **arguments)
    return model, history, optimizer


def cut_and_resume(path, at=((0, 0), (1, 1), (2, 3)), **arguments):
    for epoch, step in at:
        with pytest.raises(Killed):
            toy_run(checkpoint=Checkpoints(path, every=1), observers=[KillAt(epoch, step)], **arguments)
    return toy_run(checkpoint=Checkpoints(path, every=1), **arguments)


def assert_same_runs(resumed, straight):
    assert weights(resumed[0]) == weights(straight[0])
    assert same(resumed[1], straight[1])
    torch.testing.assert_close(resumed[2].state_dict(), straight[2].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_on_where_they_stood(tmp_path, name):
    make = OPTIMIZERS[name]
    assert_same_runs(cut_and_resume(tmp_path / "c", make_optimizer=make), toy_run(make))


@pytest.mark.parametrize("per", ["epoch", "step"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_where_they_stood(tmp_path, name, per):
    if name == "ReduceOnPlateau" and per == "step":
        pytest.skip("it follows the validation loss")
    arguments = {"make_scheduler": SCHEDULERS[name], "scheduler_per": per}
    resumed, straight = cut_and_resume(tmp_path / "c", **arguments), toy_run(**arguments)
    assert_same_runs(resumed, straight)
    rates = straight[1].learning_rate
    assert len(set(rates)) > 1 or name == "Constant"


def test_every_scheduler_of_torch_is_among_them():
    optimizer = OPTIMIZERS["SGD"](list(Toy().parameters()))
    tested = {type(make(optimizer)).__name__ for make in SCHEDULERS.values()}
    assert tested >= {*lr_scheduler.__all__} - {"LRScheduler"}


class Noisy(Dataset):
    """Draws from three random generators of the main process for every sample."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        noise = torch.rand(6, generator=self.generator) + torch.rand(6) + random.random() + np.random.rand()
        return noise / 4, noise[:1] / 4 + index / 12


class Lazy:
    """Batches that are drawn as they are asked for."""

    def __len__(self):
        return 4

    def __iter__(self):
        for index in torch.randperm(4):
            yield torch.rand(3, 6) + index, torch.ones(3, 1)


LOADERS = {
    "list": lambda: [regression(4).tensors] * 4,
    "own generator": lambda: DataLoader(
        regression(16), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "with replacement": lambda: DataLoader(
        regression(16), 4, sampler=torch.utils.data.RandomSampler(range(16), True, 13, torch.Generator())
    ),
    "noisy": lambda: DataLoader(Noisy(), batch_size=3, shuffle=True),
    "lazy": Lazy,
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_data_comes_in_the_same_order(tmp_path, name):
    def seeded(run, *arguments):
        random.seed(1), np.random.seed(1)
        return run(*arguments, batches=LOADERS[name]())

    before = random.getstate(), np.random.get_state()
    try:
        resumed = seeded(lambda **more: cut_and_resume(tmp_path / "c", **more))
        assert_same_runs(resumed, seeded(toy_run))
    finally:
        random.setstate(before[0]), np.random.set_state(before[1])


@pytest.mark.slow
def test_the_data_of_workers_comes_in_the_same_order(tmp_path):
    arguments = {"batches": DataLoader(regression(16), 4, shuffle=True, num_workers=2)}
    assert_same_runs(cut_and_resume(tmp_path / "c", **arguments), toy_run(**arguments))


def test_without_a_seed_the_callers_random_state_goes_on(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        straight = toy_run(seed=None)
        torch.manual_seed(7)
        resumed = cut_and_resume(tmp_path / "c", seed=None)
    assert_same_runs(resumed, straight)


class Recurrent(nn.Module):
    def __init__(self, make):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.rnn, self.head = make(1, 8, num_layers=2, dropout=0.2, batch_first=True), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])


@pytest.mark.parametrize("make", [nn.LSTM, recollect.nn.LSTM])
def test_recurrent_layers_go_on_where_they_stood(tmp_path, make):
    arguments = {"make_model": lambda: Recurrent(make), "make_optimizer": OPTIMIZERS["Adam"]}
    assert_same_runs(cut_and_resume(tmp_path / "c", **arguments), toy_run(**arguments))


def test_steps_skipped_before_a_kill_count_after_it(tmp_path):
    x, y = regression(4).tensors
    batches = [(x, y), *[(x * float("nan"), y)] * 5, (x, y)]
    arguments = {"batches": batches, "checkpoint": Checkpoints(tmp_path / "c", every=1)}
    with pytest.raises(Killed):
        toy_run(observers=[KillAt(0, 4)], **arguments)
    with pytest.raises(TrainingError, match=r"5 steps in a row; given: the input x is nan .* epoch 1, step 6"):
        toy_run(**arguments)


def test_a_run_killed_between_the_last_step_and_the_schedulers_goes_on_without_a_warning(tmp_path):
    class Validation(list):
        def __iter__(self):
            if not killed:
                killed.append(1)
                raise Killed
            return super().__iter__()

    killed, arguments = [], {"make_scheduler": SCHEDULERS["Step"], "validation": Validation([regression(8).tensors])}
    with pytest.raises(Killed):
        toy_run(checkpoint=Checkpoints(tmp_path / "c", every=1), **arguments)
    resumptions = Resumptions()
    resumed = toy_run(checkpoint=Checkpoints(tmp_path / "c", every=1), observers=[resumptions], **arguments)
    assert resumptions.seen == [(0, 4)]
    assert_same_runs(resumed, toy_run(**arguments))


class Untouchable:
    """Batches that nobody may ask for."""

    def __len__(self):
        return 4

    def __iter__(self):
        raise AssertionError("the run was finished")


def test_a_finished_run_returns_its_history_at_once(tmp_path):
    model, history, _ = toy_run(checkpoint=tmp_path / "c")
    again, found, _ = toy_run(checkpoint=tmp_path / "c", batches=Untouchable(), validation=Untouchable())
    assert found == history
    assert weights(again) == weights(model)
    # Out of patience is finished too.
    arguments = {"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.0), "patience": 1, "epochs": 50}
    _, history, _ = toy_run(checkpoint=tmp_path / "d", **arguments)
    assert len(history.train_loss) == 2
    found = toy_run(checkpoint=tmp_path / "d", **{**arguments, "batches": Untouchable(), "epochs": 99})[1]
    assert found == history


def test_more_epochs_go_on_from_a_finished_run(tmp_path):
    toy_run(checkpoint=tmp_path / "c", epochs=2)
    assert_same_runs(toy_run(checkpoint=tmp_path / "c", epochs=4), toy_run(epochs=4))


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


class SignalAt(KillAt):
    def on_step(self, step, loss, clipped):
        if (self.epoch, step) == self.at:
            signal.raise_signal(signal.SIGINT)


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


class Tanh(Toy):
    def __init__(self):
        super().__init__()
        self.layers[1] = nn.Tanh()


class Wider(Toy):
    def __init__(self):
        super().__init__()
        self.layers[0] = nn.Linear(7, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1}, "seed: 1 here, 0 there"),
        ({"max_norm": 1.0}, "max norm: 1.0 here, None there"),
        ({"accumulate": 2}, "accumulate: 2 here, 1 there"),
        ({"validation": None}, "validation: False here, True there"),
        ({"scheduler_per": "step"}, "scheduler per: step here, epoch there"),
        ({"batches": [regression(4).tensors] * 3}, "batches in an epoch: 3 here, 4 there"),
        ({"make_model": Tanh}, "class of module 'layers.1': Tanh here, Dropout there"),
        ({"make_model": Wider}, r"layers.0.weight: torch.float32 \[4, 7\] here, torch.float32 \[4, 6\] there"),
        ({"make_optimizer": OPTIMIZERS["Adam"]}, "optimizer: Adam here, SGD there"),
        ({"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9)}, "lr in group 0 .*: 0.5 here"),
        ({"make_optimizer": OPTIMIZERS["groups"]}, "group 1 of the optimizer"),
        ({"make_scheduler": None}, "scheduler: None here, StepLR there"),
        ({"make_scheduler": lambda o: lr_scheduler.StepLR(o, 3)}, "step_size of the scheduler: 3 here, 2 there"),
        ({"batches": LOADERS["own generator"]()}, "random generators: .*batches.sampler.generator"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_before_anything_changes(tmp_path, arguments, message):
    path = tmp_path / "c"
    same_run = {"make_scheduler": SCHEDULERS["Step"]}
    with pytest.raises(Killed):
        toy_run(checkpoint=Checkpoints(path, every=1), observers=[KillAt(1, 2)], **same_run)
    before = path.read_bytes()
    arguments = {**same_run, **arguments}
    model = arguments.pop("make_model", Toy)()
    untouched = weights(model)
    with pytest.raises(TrainingError, match=f"another run.*{message}.*delete the file"):
        toy_run(make_model=lambda: model, checkpoint=path, **arguments)
    assert weights(model) == untouched
    assert path.read_bytes() == before
    assert_same_runs(toy_run(checkpoint=path, **same_run), toy_run(**same_run))


def damaged(data, tmp_path):
    size = len(data)
    for end in (0, 1, 8, 9, 100, size // 2, size - 1):
        yield data[:end]
    for place in (*range(0, size, size // 40), size - 1):
        yield data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    yield data + b"\0"
    torch.save({"epoch": 1}, tmp_path / "other")
    yield (tmp_path / "other").read_bytes()
    recollect.save(nn.Linear(1, 1), tmp_path / "other")
    yield (tmp_path / "other").read_bytes()
    # Sound files that say something else.
    write_model(tmp_path / "other", {"kind": "checkpoint"}, {})
    yield (tmp_path / "other").read_bytes()
    (tmp_path / "other").write_bytes(data)
    header, tensors = read_model(tmp_path / "other")
    for change in ({"state": []}, {"state": {}}, {"setup": []}, {"state": {"epoch": 0}}):
        write_model(tmp_path / "other", header | change, tensors)
        yield (tmp_path / "other").read_bytes()
    write_model(tmp_path / "other", header, dict(list(tensors.items())[1:]))
    yield (tmp_path / "other").read_bytes()


def test_a_damaged_checkpoint_is_refused_before_anything_changes(tmp_path):
    path = tmp_path / "c"
    toy_run(checkpoint=path, epochs=1)
    model = Toy()
    files = list(damaged(path.read_bytes(), tmp_path))
    assert len(files) > 50
    untouched, random_state = weights(model), torch.get_rng_state()
    for data in files:
        path.write_bytes(data)
        with pytest.raises(TrainingError, match="delete"):
            toy_run(make_model=lambda: model, checkpoint=path)
        assert weights(model) == untouched
        assert torch.equal(torch.get_rng_state(), random_state)
        assert path.read_bytes() == data


class Odd(torch.optim.SGD):
    """Its state is not data."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["rule"] = print


class OddLater(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        self.state[self.param_groups[0]["params"][0]]["seen"] = {1, 2}


def test_state_that_no_checkpoint_can_hold(tmp_path):
    model = Toy()
    untouched = weights(model)
    with pytest.raises(TrainingError, match=r"rule in group 0 of the optimizer is builtins\.builtin_function"):
        toy_run(Odd, make_model=lambda: model, checkpoint=tmp_path / "c")
    assert weights(model) == untouched
    assert not (tmp_path / "c").exists()
    with pytest.raises(TrainingError, match=r"optimizer\.state\.0\.seen is builtins\.set"):
        toy_run(lambda p: OddLater(p, lr=0.1), checkpoint=tmp_path / "c", observers=[KillAt(0, 1)])


def test_packing_is_lossless():
    value = {
        0: (1, 2.5, float("inf"), None, True, "text", [-0.0], ()),
        "nested": {"a": torch.arange(3), (1, 2): torch.tensor(1.5, dtype=torch.bfloat16)},
        "nested.a": torch.zeros(0, 2, dtype=torch.float64),
        "bits": torch.tensor([True, False]),
        "view": torch.arange(6.0).reshape(2, 3).T,
    }
    arrays = {}
    tree = json.loads(json.dumps(pack(value, "x", arrays), allow_nan=False))
    found = unpack(tree, arrays)
    assert str(found) == str(value)
    assert found["nested"][1, 2].dtype == torch.bfloat16
    assert len(arrays) == 5


def test_arguments_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="folder that exists"):
        Checkpoints(tmp_path / "nowhere" / "c")
    with pytest.raises(InputError, match="every"):
        Checkpoints(tmp_path / "c", every=0)
    with pytest.raises(InputError, match="folder that exists"):
        toy_run(checkpoint=str(tmp_path / "nowhere" / "c"))


def test_leftovers_of_a_kill_are_swept_and_nothing_else(tmp_path):
    for name in (".c.abc.tmp", ".c2.abc.tmp", ".d.tmp", "c.tmp"):
        (tmp_path / name).touch()
    toy_run(checkpoint=tmp_path / "c", epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"c", ".c2.abc.tmp", ".d.tmp", "c.tmp"}


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_it_counts(tmp_path, monkeypatch):
    events = []
    sync, replace = _files.os.fsync, _files.os.replace

    def record_sync(handle):
        events.append("sync folder" if Path(f"/proc/self/fd/{handle}").resolve() == tmp_path else "sync file")
        sync(handle)

    monkeypatch.setattr(_files.os, "fsync", record_sync)
    monkeypatch.setattr(_files.os, "replace", lambda *names: (events.append("rename"), replace(*names)))
    _files.write_atomically(tmp_path / "c", b"data")
    assert events == ["sync file", "rename", "sync folder"]


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
