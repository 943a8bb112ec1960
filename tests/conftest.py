"""What holds in every test: fresh memory is full of NaN, and a test leaves no setting or file behind."""

from __future__ import annotations

import math
import os
import signal
import threading

import pytest
import torch

import recollect
from recollect.engine import buffers

WORKER = "PYTEST_XDIST_WORKER" in os.environ  # one of some processes, each of which has a core

if WORKER:  # teams of threads that share cores wait for each other; what needs more threads asks for them
    torch.set_num_threads(1)


if threading.current_thread() is threading.main_thread():
    # A shell starts what runs in the background with Ctrl-C ignored, and processes of ours would do as this one does.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _kernels_on_disk(tmp_path_factory):
    """The session's own: nothing is read from or written to the user's home, by subprocesses neither."""
    own = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        shared = own.parent if WORKER else own
        patch.setenv("RECOLLECT_CACHE_DIR", str(shared / "kernels"))
        patch.setenv("XDG_STATE_HOME", str(shared / "state"))  # where the key to these is
        if WORKER:
            patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def _poison():
    """Fill what ``torch.empty`` and the engine's buffers hand out with NaN: reading it too early then shows."""

    def poisoned(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point() and not tensor.is_meta:
                with torch.no_grad():
                    tensor.fill_(torch.nan)
            return tensor

        return made

    lend, give_back = buffers.Buffer.__init__, buffers.Buffer.give_back

    def lend_poisoned(self, dtype, parts, small=None):
        lend(self, dtype, parts, small)
        if self._fresh is None:
            self._memory.array.fill(math.nan)

    def give_back_poisoned(self, kernel):
        if self._fresh is not None:
            self._fresh.fill_(math.nan)
        give_back(self, kernel)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned(torch.empty))
        patch.setattr(torch, "empty_like", poisoned(torch.empty_like))
        patch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
        patch.setattr(buffers.Buffer, "__init__", lend_poisoned)
        patch.setattr(buffers.Buffer, "give_back", give_back_poisoned)
        yield


@pytest.fixture(autouse=True)
def _settings():
    """Undo what a test does to the backend, the precision, the threads and the default dtype."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    recollect.set_backend("auto")
    recollect.set_precision("float32")
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
