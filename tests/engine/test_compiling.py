"""The backward kernel is made beside the forward kernel of training: once, without a word, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import recollect
from recollect import nn
from recollect.engine import calls, plain
from recollect.engine.llvm import kernels
from tolerances import GRADIENT, assert_equal

NAME = "recollect-compiler"
TIMEOUT = 60  # seconds, for what takes less than one


def begun():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture(autouse=True)
def _nothing_known(tmp_path, monkeypatch):
    """No kernel is known to this process or on its disk, and no thread goes on after a test."""
    monkeypatch.setenv("RECOLLECT_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(kernels, "_CACHE", {})
    _forget()
    with recollect.set_backend("llvm"):
        yield
    for thread in begun():
        thread.join(TIMEOUT)
    assert not begun()
    _forget()


def _forget():
    for kept in (calls.kept_problem, calls.sized_problem, plain._calls):  # they hold kernels too
        kept.cache_clear()


@pytest.fixture
def train():
    """One call of a layer with its backward pass; what it computed."""
    torch.manual_seed(0)
    layer, x = nn.RNN(3, 5), torch.randn(4, 2, 3)

    def call():
        y = layer(x)[0]
        return [y.detach(), *torch.autograd.grad(y.square().sum(), list(layer.parameters()))]

    return call


def check(found, train):
    with recollect.set_backend("reference"):
        for ours, true in zip(found, train(), strict=True):
            assert_equal(ours, true, GRADIENT)


@pytest.fixture
def writing(monkeypatch):
    """The names of the threads that wrote a backward kernel; ``hold`` is called in them before they do."""
    made, write = [], kernels.backward.write

    def held(*given, **options):
        made.append(threading.current_thread().name)
        made_by.hold()
        return write(*given, **options)

    class made_by:  # noqa: N801
        names = made
        hold = staticmethod(lambda: None)

    monkeypatch.setattr(kernels.backward, "write", held)
    return made_by


def test_it_is_written_while_the_forward_kernel_is_compiled(train, writing, monkeypatch):
    written, compile_module = threading.Event(), kernels.compile_module
    writing.hold = written.set

    def compile_later(*given):
        assert written.wait(TIMEOUT)
        return compile_module(*given)

    monkeypatch.setattr(kernels, "compile_module", compile_later)
    check(train(), train)
    assert writing.names == [NAME]


def test_who_asks_for_it_meanwhile_waits(train, writing, monkeypatch):
    asked, ask = threading.Event(), kernels.Kernels.backward

    def asking(*given, **options):
        if threading.current_thread() is threading.main_thread():
            asked.set()
        return ask(*given, **options)

    monkeypatch.setattr(kernels.Kernels, "backward", asking)
    writing.hold = lambda: asked.wait(TIMEOUT)
    check(train(), train)
    assert asked.is_set()
    assert writing.names == [NAME]


def test_its_error_is_that_of_who_asks(train, writing, monkeypatch, capfd):
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)

    def fail():
        raise ArithmeticError(threading.current_thread().name)

    writing.hold = fail
    with pytest.raises(ArithmeticError, match="MainThread"):
        train()
    assert writing.names == [NAME, "MainThread"]
    writing.hold = lambda: None
    check(train(), train)
    assert not printed
    assert capfd.readouterr() == ("", "")


def test_inference_and_what_is_on_the_disk_need_no_thread(train, monkeypatch):
    first = train()
    monkeypatch.setattr(kernels, "_CACHE", {})
    _forget()
    monkeypatch.setattr(kernels, "_begin", None)
    assert all(map(torch.equal, train(), first))
    with torch.no_grad():
        nn.LSTM(3, 5)(torch.zeros(4, 2, 3))


def test_where_no_thread_can_be_started(train, writing, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    check(train(), train)
    assert writing.names == ["MainThread"]


# Processes ----------------------------------------------------------------------------------------

PRELUDE = """
import faulthandler, os, signal, sys, threading, traceback
import torch, recollect
from recollect import nn
from recollect.engine.llvm import kernels
if hasattr(signal, "SIGALRM"):
    faulthandler.register(signal.SIGALRM, chain=True)  # says where a process hung before it dies of the alarm
    signal.alarm(50)
torch.set_num_threads(1)
layer, x = nn.RNN(3, 5), torch.ones(4, 2, 3)
"""


def run(code, folder):
    environment = os.environ | {"RECOLLECT_CACHE_DIR": str(folder)}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PRELUDE + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("how", ["", "sys.exit()", "os._exit(0)"])
def test_a_process_that_exits_meanwhile(how, tmp_path):
    assert run(f"with recollect.set_backend('llvm'):\n    layer(x)\n{how}", tmp_path) == ""
    if how != "os._exit(0)":
        assert len(list(tmp_path.iterdir())) == 2, "it has waited"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("moment", ["written", "compiled"])
def test_a_process_that_forks_meanwhile(moment, tmp_path):
    """The child has no thread that would go on with the kernel, and makes it itself."""
    out = run(
        f"""
recollect.set_backend("llvm")
begun, go_on, parent = threading.Event(), threading.Event(), os.getpid()
module, name = (kernels.backward, "write") if {moment!r} == "written" else (kernels, "compile_module")
make = getattr(module, name)

def held(*given, **options):
    if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
        begun.set()
        # What compiles holds a fork up: it is let go when that has begun to wait.
        go_on.wait(20 if {moment!r} == "written" else 0.2)
    return make(*given, **options)

setattr(module, name, held)
y = layer(x)[0]
assert begun.wait(20)
pid = os.fork()
if not pid:
    try:
        signal.alarm(20)
        y.sum().backward()
        print("child", layer.weight_hh_l0.grad.abs().sum().item(), flush=True)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
go_on.set()
y.sum().backward()
print("parent", layer.weight_hh_l0.grad.abs().sum().item())
""",
        tmp_path,
    )
    child, parent = out.splitlines()
    assert child.split()[1] == parent.split()[1]
