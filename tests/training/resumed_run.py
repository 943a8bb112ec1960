"""One training run with everything in it that a checkpoint must hold; run in processes that are killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch._dynamo  # what the first optimizer imports: here once for all processes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from recollect.training import Checkpoints, HistoryFile, Observer, train

EPOCHS = 6
STEPS = 3  # in an epoch: 6 batches in pairs


def regression(samples=43):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 6, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True).tanh())


def network():
    """Dropout draws at random, BatchNorm has buffers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))


def run(folder=None, *, every=1, epochs=EPOCHS, observers=(), model=None):
    """Train with shuffling, dropout, momentum, a schedule and accumulation; returns the model and the history."""
    model = model or network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    history = train(
        model,
        DataLoader(regression(), batch_size=8, shuffle=True),
        loss=nn.functional.mse_loss,
        optimizer=optimizer,
        epochs=epochs,
        max_norm=0.5,
        accumulate=2,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 2),
        scheduler_per="step",
        validation=DataLoader(regression(), batch_size=16),
        observers=observers,
        seed=3,
        checkpoint=folder and Checkpoints(Path(folder) / "run.checkpoint", every=every),
    )
    return model, history


def weights(model):
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def write_down(folder, model):
    (Path(folder) / "weights").write_bytes(weights(model))


def recorded(folder, epochs, *, checkpoint):
    """A run that leaves its weights and its history in files."""
    observers = [HistoryFile(Path(folder) / "history.jsonl", steps=True)]
    write_down(folder, run(folder if checkpoint else None, epochs=epochs, observers=observers)[0])


def to_be_killed(folder, epochs):
    torch.set_num_threads(1)
    # The kernel keeps what a killed process has written; this only makes the moments independent of the disk.
    os.fsync = lambda handle: None
    recorded(folder, epochs, checkpoint=True)


class InterruptItself(Observer):
    """Sends Ctrl-C's signal from the middle of a step."""

    def __init__(self, model, epoch):
        self.epoch, self.now = epoch, 0
        model[0].register_forward_hook(self.interrupt)

    def on_epoch(self, epoch, history):
        self.now = epoch + 1

    def interrupt(self, module, args, output):
        if module.training and self.now == self.epoch:
            self.epoch = None
            os.kill(os.getpid(), signal.SIGINT)


def interrupted(folder, epoch):
    """Ctrl-C in the middle of a step; ends with exit code 130 and its weights written down."""
    torch.set_num_threads(1)
    model = network()
    try:
        run(folder, every=None, model=model, observers=[InterruptItself(model, epoch)])
    except KeyboardInterrupt:
        write_down(folder, model)
        sys.exit(130)
