"""Diagnoses that several tests read."""

import pytest
import torch
from torch import nn

import recollect
from last_step import LastStep
from recollect.diagnosis import Probe, error_surface


@pytest.fixture(scope="session")
def everything():
    """A diagnosis that has all there is to show: of a small model that a probe saw learn, with some steps clipped."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = LastStep(recollect.nn.LSTM(2, 8, batch_first=True)), torch.randn(16, 40, 2)
        y = x[:, -5, :1]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with Probe(model, every=4) as probe:
            for step in range(40):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                clipped = recollect.clip_by_global_norm(model.parameters(), max_norm=0.5)
                optimizer.step()
                probe.on_step(step, loss.item(), clipped)
        surface = error_surface(model, x, y, points=15, progress=False)
        return recollect.diagnose(model, x, y, training=probe, surface=surface, thorough=True, progress=False)
