"""Observers are told of a step that is skipped, and can have it looked into, which changes nothing."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from recollect.errors import TrainingError
from recollect.training import Observer, loop, train
from recollect.training.generators import Generators

DATA = [(torch.ones(1000, 1), torch.ones(1000, 1))] * 4


class Roulette(nn.Module):
    """In some of its calls it spoils a row that torch's generator chooses, and it also draws from the others."""

    def __init__(self, bad_calls):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.bad_calls, self.rows = bad_calls, []

    def forward(self, x):
        bad = torch.zeros_like(x)
        self.rows.append(int(torch.randint(len(x), ())))
        random.random()
        np.random.rand()
        if int(self.calls) in self.bad_calls:
            bad[self.rows[-1]] = math.nan
        self.calls += 1
        return self.weight * x + bad


class Skips(Observer):
    """Notes the steps that were skipped; looks into those that it is to."""

    def __init__(self, looks=()):
        self.looks, self.seen, self.order = looks, [], []

    def on_step(self, step, loss, clipped):
        self.order.append(("step", step))

    def on_skip(self, step, look):
        self.order.append(("skip", step))
        self.seen.append((step, str(look()) if step in self.looks else None))
        if step in self.looks:
            assert look() is look()


def run(model, *observers):
    random.seed(0)
    np.random.seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history = train(
        model, DATA, loss=nn.functional.mse_loss, optimizer=optimizer, epochs=1, observers=observers, seed=0
    )
    return history, (torch.initial_seed(), random.random(), np.random.rand())


def test_it_is_told_after_the_step_and_looks_at_the_same_random_numbers():
    model, skips = Roulette({0, 1, 2}), Skips(looks=[1])
    run(model, skips)
    assert skips.order == [("step", 0), ("skip", 0), ("step", 1), ("skip", 1), ("step", 2), ("skip", 2), ("step", 3)]
    [first, (_, culprit), third] = skips.seen
    assert (first, third) == ((0, None), (2, None))
    assert model.rows[2] == model.rows[1]
    assert f"row {model.rows[1]} " in culprit
    assert len(model.rows) == 5


def test_a_look_changes_nothing_of_the_run():
    looked, alone = Roulette({1}), Roulette({1})
    history, random_state = run(looked, Skips(looks=[1]))
    expected, expected_state = run(alone)
    assert torch.equal(looked.weight, alone.weight)
    assert looked.rows == [*alone.rows[:2], alone.rows[1], *alone.rows[2:]]
    assert random_state == expected_state
    assert history.train_loss == expected.train_loss
    assert int(looked.calls) == int(alone.calls) == len(DATA)


def test_nobody_looks_and_nothing_is_kept_for_those_who_do_not_ask(monkeypatch):
    kept = []
    own = Generators.state_of_torch
    monkeypatch.setattr(Generators, "state_of_torch", lambda self: kept.append(1) or own(self))
    monkeypatch.setattr(loop, "find_culprit", lambda *arguments: pytest.fail("looked without being asked"))
    run(Roulette({1}), Observer.__new__(type("Quiet", (Observer,), {})))
    without = len(kept)
    kept.clear()
    run(Roulette({1}), Skips())
    assert len(kept) == without + len(DATA)


def test_one_look_serves_an_observer_and_the_error(monkeypatch):
    looked, own = [], loop.find_culprit
    monkeypatch.setattr(loop, "find_culprit", lambda *arguments: looked.append(1) or own(*arguments))
    model, skips = Roulette(range(99)), Skips(looks=[4])
    monkeypatch.setattr("test_skips.DATA", DATA + DATA[:1])
    with pytest.raises(TrainingError, match=r"row \d+ "):
        run(model, skips)
    assert [step for step, _ in skips.seen] == [0, 1, 2, 3, 4]
    assert len(looked) == 1
