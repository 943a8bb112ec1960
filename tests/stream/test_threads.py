"""The stepper's own team: no bit depends on it, it uses nothing while it waits, and nobody waits for it in vain.

What could hang is a program of its own, killed when it does not end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import recollect
from recollect import nn
from recollect.engine.llvm import workers
from recollect.errors import InputError
from recollect.stream import Stepper, links

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="one thread elsewhere")

X = np.random.default_rng(0).normal(size=(40, 29, 3)).astype(np.float32)

PRELUDE = """
import os, signal, sys, time
signal.alarm(40)
import numpy as np
from recollect.stream import Stepper, links
links._MUCH = 0
path, x = sys.argv[1], np.load(sys.argv[2])

def run(threads):
    stepper = Stepper.load(path, threads)
    return np.array([stepper.step(each) for each in x])

expected = run(1)
team = Stepper.load(path, 3)
for _ in range(3):
    team.reset()
    for each, right in zip(x, expected):
        assert (team.step(each) == right).all()
assert len(os.listdir("/proc/self/task")) >= 3
"""


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    recollect.save(torch.nn.Sequential(nn.GRU(3, 40, num_layers=2), torch.nn.Linear(40, 2)), tmp_path / "model")
    np.save(tmp_path / "x.npy", X)
    return tmp_path / "model"


@pytest.fixture
def _always(monkeypatch):
    """Every step is worth several threads."""
    monkeypatch.setattr(links, "_MUCH", 0)


def run_alone(path, code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PRELUDE + code, str(path),
         str(path.parent / "x.npy")],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(recollect.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def outputs(stepper, x=X):
    return np.array([stepper.step(each) for each in x])


@pytest.mark.usefixtures("_always")
def test_the_number_of_threads_changes_no_bit(path):
    expected = outputs(Stepper.load(path, 1))
    for threads in (2, 3, 5, 2, None):
        stepper = Stepper.load(path, threads)
        for _ in range(3):  # workers that slept have woken by then
            stepper.reset()
            np.testing.assert_array_equal(outputs(stepper), expected)


@pytest.mark.usefixtures("_always")
def test_python_threads_with_steppers_of_their_own(path):
    expected, wrong = outputs(Stepper.load(path, 1)), []
    steppers = [Stepper.load(path, 1 + place % 3) for place in range(6)]

    def work(stepper):
        for _ in range(20):
            stepper.reset()
            if not np.array_equal(outputs(stepper), expected):
                wrong.append(stepper)

    threads = [threading.Thread(target=work, args=(stepper,)) for stepper in steppers]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
        assert not each.is_alive()
    assert not wrong


def test_small_steps_need_no_team(path):
    tasks = len(os.listdir("/proc/self/task"))
    outputs(Stepper.load(path))
    assert len(os.listdir("/proc/self/task")) == tasks


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True], ids=repr)
def test_numbers_of_threads_that_are_none(path, threads):
    with pytest.raises(InputError, match="threads"):
        Stepper.load(path, threads)


def test_a_team_that_waits_uses_no_processor(path):
    used = run_alone(
        path,
        """
time.sleep(0.3)
start = time.process_time()
time.sleep(1)
print(time.process_time() - start)
""",
    )
    assert float(used) < 0.05


def test_the_process_ends_while_the_team_looks_for_work(path):
    run_alone(path, "team.step(x[0])")


def test_a_forked_child_steps_alone_and_right(path):
    run_alone(
        path,
        """
for _ in range(3):
    team.reset()
    half = [team.step(each) for each in x[:20]]
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        rest = [team.step(each) for each in x[20:]]
        same = (np.array(half + rest) == expected).all() and (run(3) == expected).all()
        os._exit(0 if same and len(os.listdir("/proc/self/task")) == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"
    assert (np.array(half + [team.step(each) for each in x[20:]]) == expected).all()
""",
    )


def test_a_child_forked_while_another_thread_has_the_lock(path):
    run_alone(
        path,
        """
import threading
from recollect.stream import stepper
inside, leave = threading.Event(), threading.Event()
def hold():
    with stepper._lock:
        inside.set()
        leave.wait()
threading.Thread(target=hold).start()
inside.wait()
pid = os.fork()
if not pid:
    signal.alarm(20)
    team.reset()
    os._exit(0 if (np.array([team.step(each) for each in x]) == expected).all() else 1)
leave.set()
assert os.waitpid(pid, 0)[1] == 0, "the child failed"
""",
    )


def test_where_no_team_can_be_had_one_thread_serves(path, monkeypatch):
    monkeypatch.setattr(links, "_MUCH", 0)
    expected = outputs(Stepper.load(path, 1))
    monkeypatch.setattr(workers, "_KNOWN", {})
    np.testing.assert_array_equal(outputs(Stepper.load(path, 2)), expected)


def test_where_no_more_threads_can_be_started_the_team_stays_as_it_is(path, monkeypatch):
    monkeypatch.setattr(links, "_MUCH", 0)
    expected = outputs(Stepper.load(path, 1))

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    np.testing.assert_array_equal(outputs(Stepper.load(path, 7)), expected)
