"""A run that is cut off anywhere goes on from its checkpoint, and ends with the same bits."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from resumed_run import EPOCHS, STEPS, regression, run, weights
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset
from toy_run import (
    OPTIMIZERS,
    SCHEDULERS,
    KillAt,
    Killed,
    Resumptions,
    Toy,
    assert_same_runs,
    cut_and_resume,
    same,
    toy_run,
)

import recollect
from recollect.errors import TrainingError
from recollect.training import Checkpoints

pytestmark = pytest.mark.usefixtures("same_bits_and_no_wait")


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
