"""Ctrl-C at any moment: the call ends with KeyboardInterrupt, and nothing else is different afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

STORM = """
import copy, random, signal, sys, traceback
import torch
import recollect
from recollect import nn, training
from recollect.engine import buffers, dispatch, precision

swallowed = []

def hook(unraisable):
    frames = traceback.extract_tb(unraisable.exc_traceback)
    if isinstance(unraisable.exc_value, KeyboardInterrupt) and any("recollect" in frame.filename for frame in frames):
        swallowed.append("".join(traceback.format_tb(unraisable.exc_traceback)))

sys.unraisablehook = hook
torch.manual_seed(0)
layers = [nn.LSTM(5, 16), nn.LSTM(5, 16, 2), nn.GRU(5, 16, bidirectional=True), nn.LSTM(5, 16, checkpoint=6)]
x, lengths = torch.randn(20, 6, 5), torch.tensor([3, 20, 0, 7, 1, 5])

frozen = {layer: copy.deepcopy(layer).requires_grad_(False) for layer in layers}

def infer(layer):  # not under torch.no_grad, which an interrupt can leave on by itself
    return [frozen[layer](x)[0], frozen[layer](x, lengths=lengths)[0]]

def learn(layer):
    y, _ = layer(x, lengths=lengths)
    return [y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]

class Last(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(5, 16)
    def forward(self, x):
        return self.layer(x)[0][-1]

model = Last()
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
batches = [(x, torch.zeros(6, 16))] * 3

def train(layer):
    training.train(model, batches, loss=torch.nn.functional.mse_loss, optimizer=optimizer, epochs=1,
                   validation=batches, max_norm=1.0)
    return []

def settle(layer):
    with recollect.set_backend("reference"):
        layer(x)
    return []

works = [infer, learn, train, settle]
expected = {(work, layer): work(layer) for work in works for layer in layers}
chance = random.Random(0)

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
met = 0
for turn in range(int(sys.argv[1])):
    work, layer = chance.choice(works), chance.choice(layers)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 3e-3))
            while True:
                work(layer)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        met += 1
    recollect.set_backend("auto")  # between this call and its block, an interrupt leaves what a plain call would
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), f"turn {turn}: {work.__name__}"
    assert dispatch.are_kernels_chosen() and not precision.is_bfloat16(torch.float32), f"turn {turn}: {work.__name__}"
    assert model.training and model.layer.training, f"turn {turn}: {work.__name__}"
    assert buffers._pool.idle_bytes <= buffers.LIMIT
assert met == int(sys.argv[1])
assert not swallowed, swallowed[0]
for (work, layer), results in expected.items():
    assert all(map(torch.equal, work(layer), results))
assert recollect.release_buffers() > 0
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="only POSIX has timers that interrupt")
@pytest.mark.parametrize("interrupts", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_storm_of_interrupts_leaves_everything_as_it_was(interrupts):
    done = subprocess.run([sys.executable, "-c", STORM, str(interrupts)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
