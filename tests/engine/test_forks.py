"""Processes that are forked from one that has used its threads, or spawned beside it: right results, and no hang.

Each scenario is a program of its own, killed when it does not end, so that a hang is a failure and no more.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")

PRELUDE = """
import faulthandler, multiprocessing, os, signal, sys, threading, time, traceback, warnings
import torch
faulthandler.register(signal.SIGALRM, chain=True)  # says where a process hung before it dies of the alarm
signal.alarm(50)
warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons warn of forks beside threads
torch.set_num_threads(2)

def start_the_pool():
    torch.randn(1 << 20).sin().sum()
    assert sys.platform != "linux" or len(os.listdir("/proc/self/task")) > 1

def in_child(work):
    "Run work() in a forked child, which must end by itself and well."
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(20)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"
"""

# Large enough that kernels run on two threads, and torch's own operations around them too.
LAYER = """
import recollect
from recollect import nn
recollect.set_backend("llvm")
torch.manual_seed(0)
layer, x = nn.LSTM(63, 130), torch.randn(20, 90, 63)
lengths = torch.arange(90) % 21

def results():
    found = []
    for each in (None, lengths):
        layer.zero_grad()
        y, (h, c) = layer(x, lengths=each)
        (y.square().sum() + h.sum()).backward()
        with torch.no_grad():
            found += [y.detach(), c.detach(), layer(x, lengths=each)[0]]
        found += [parameter.grad.clone() for parameter in layer.parameters()]
    return found

def check(expected):
    found = results()
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_of_a_process_that_used_its_team():
    """Forward and training, torch's own threads in the child, the parent's team afterwards, and a child's child."""
    out = run(
        LAYER
        + """
expected = results()

def work():
    check(expected)
    print(layer.backend_for(x), flush=True)
    start_the_pool()
    in_child(lambda: check(expected))

for _ in range(2):
    in_child(work)
    check(expected)
assert "up to 2 thread(s)" in layer.backend_for(x)
"""
    )
    assert out.count("one thread (OpenMP does not survive a fork)") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no telling")
def test_a_child_that_imports_the_package_first():
    """Torch's threads ran in the parent; this package was not there to see it."""
    out = run("""
start_the_pool()

def work():
    import recollect
    from recollect import nn
    torch.manual_seed(0)
    layer, x = nn.LSTM(63, 64), torch.randn(9, 29, 63)  # work for two threads, in tensors that torch takes alone
    with torch.no_grad():
        y, _ = layer(x)
        torch.set_num_threads(1)  # or torch's own products wait for threads that are not there
        with recollect.set_backend("reference"):
            assert torch.allclose(y, layer(x)[0], atol=1e-5)
    print(layer.backend_for(x), flush=True)

in_child(work)
""")
    assert "one thread (OpenMP does not survive a fork)" in out


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_importing_starts_no_threads():
    run("""
before = len(os.listdir("/proc/self/task"))
from recollect import cells, nn
cells.slstm
assert len(os.listdir("/proc/self/task")) == before
""")


def test_forks_while_other_threads_compile():
    """Locks that the others hold at that moment are free in the child."""
    out = run(
        LAYER
        + """
import itertools
count, stop = itertools.count(1), threading.Event()

def fresh():
    number = next(count)
    @recollect.cell(gates="a", states="h")
    def cell(inp, rec, prev):
        return torch.tanh(inp.a + rec.a) * (0.5 + number / 1024 + 0.0001)
    return nn.Recurrent(cell, 2, 3)

def compile_on(training):
    with torch.set_grad_enabled(training):
        while not stop.is_set():
            fresh()(torch.randn(2, 2, 2))

# One compiles while the other waits to, with what it may hold meanwhile.
threads = [threading.Thread(target=compile_on, args=(training,)) for training in (False, True)]
for thread in threads:
    thread.start()

def work():
    y = fresh()(torch.randn(2, 2, 2))[0]
    y.sum().backward()

from recollect.engine.llvm.machine import COMPILING
caught = 0
for _ in range(4):
    time.sleep(0.1)
    if COMPILING.acquire(blocking=False):
        COMPILING.release()
    else:
        caught += 1
    in_child(work)
stop.set()
for thread in threads:
    thread.join()
print("compiling:", caught)
"""
    )
    assert int(out.split()[-1]) > 0, "no fork fell into a compilation"


def test_a_fork_while_another_thread_borrows_memory():
    run(
        LAYER
        + """
from recollect.engine import buffers
expected = results()
begun, stop = threading.Event(), threading.Event()

def borrow():
    while not stop.is_set():
        buffers._pool.lend((torch.float32, 4096))
        begun.set()

thread = threading.Thread(target=borrow)
thread.start()
assert begun.wait(10)
for _ in range(5):
    in_child(lambda: check(expected))
stop.set()
thread.join()
check(expected)
"""
    )


WORKERS = (
    LAYER
    + """
def work(_):
    return results()[0]

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return layer(x)[0].detach()
"""
)


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_of_multiprocessing(method, tmp_path):
    """A pool's workers, and those of a DataLoader, give what the parent gives."""
    program = tmp_path / "program.py"
    program.write_text(
        PRELUDE
        + WORKERS
        + f"""
if __name__ == "__main__":
    expected = results()
    context = multiprocessing.get_context({method!r})
    with context.Pool(1) as pool:
        for y in pool.map(work, range(2)):
            assert torch.equal(y, expected[0])
    loader = torch.utils.data.DataLoader(Data(), batch_size=None, num_workers=1, multiprocessing_context={method!r})
    for y in loader:
        assert torch.equal(y, expected[0])
    check(expected)
    print("done")
"""
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
