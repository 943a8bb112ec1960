"""A small run to be cut off and resumed in the test's own process, and those who cut it off."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from resumed_run import regression, weights
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from recollect.training import Checkpoints, Observer, train

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
        "loss": nn.functional.mse_loss,
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


def same(history, other):
    return dataclasses.replace(history, seconds=[]) == dataclasses.replace(other, seconds=[])


def assert_same_runs(resumed, straight):
    assert weights(resumed[0]) == weights(straight[0])
    assert same(resumed[1], straight[1])
    torch.testing.assert_close(resumed[2].state_dict(), straight[2].state_dict(), rtol=0, atol=0)
