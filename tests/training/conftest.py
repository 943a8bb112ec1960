"""What tests of checkpoints have in common."""

from __future__ import annotations

import pytest
import torch

from recollect import _files


@pytest.fixture
def same_bits_and_no_wait(monkeypatch):
    """The same bits need the same number of threads; only a crash of the machine needs a file on the disk."""
    torch.set_num_threads(1)
    monkeypatch.setattr(_files.os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True)
def _the_same_weights_every_time():
    torch.manual_seed(0)
