"""Kernels on disk: found again by content, never trusted, never fatal."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import subprocess
import sys
import warnings
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import recollect
from forgetting import forget_problems
from recollect import cells, nn
from recollect.engine.llvm import cache, kernels, secret
from recollect.engine.llvm.machine import Code, compile_module, host
from recollect.engine.plan import Variant
from test_architecture import MODULES, imports
from tolerances import assert_bits

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="kernels are kept where files have owners")

KEY = hashlib.sha256(b"some content").hexdigest()
RETURNS_42 = 'define i64 @"answer"() { ret i64 42 }'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory that is not there yet, nor is the key to it."""
    monkeypatch.setenv("RECOLLECT_CACHE_DIR", str(tmp_path / "kept" / "kernels"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "kept" / "kernels"


compile_once = lru_cache(compile_module)  # the cache is tested here, not the compiler


@pytest.fixture
def compiled(monkeypatch):
    """A list that grows with every kernel that is compiled."""
    made = []

    def counting(text, machine):
        made.append(text)
        return compile_once(text, machine)

    monkeypatch.setattr(kernels, "compile_module", counting)
    return made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def call(monkeypatch, compiled):
    """Train a layer with kernels that this process does not know; return what it computed."""
    torch.manual_seed(0)
    layer, x = nn.RNN(3, 5), torch.randn(4, 2, 3)

    def call_afresh():
        monkeypatch.setattr(kernels, "_CACHE", {})
        forget_problems()
        layer.zero_grad()
        y, h = layer(x)
        (y.square().sum() + h.sum()).backward()
        return [y.detach(), h.detach(), *(each.grad.clone() for each in layer.parameters())]

    with recollect.set_backend("llvm"):
        yield call_afresh


def test_a_known_cell_is_not_compiled_again(folder, compiled, call):
    first = call()
    assert len(compiled) == 2  # training and backward
    assert len(names(folder)) == 2
    for ours, before in zip(call(), first, strict=True):
        assert_bits(ours, before)
    assert len(compiled) == 2


def test_it_is_not_even_written(folder, call, monkeypatch):
    call()
    for writer in (kernels.forward, kernels.backward):
        monkeypatch.setattr(writer, "write", None)
    call()


def test_code_from_the_disk_runs(folder):
    cache.store(KEY, compile_module(RETURNS_42, host()))
    code = Code(cache.load(KEY), host())
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("answer"))() == 42


def test_directory_and_files_are_private(folder):
    before = os.umask(0)
    try:
        cache.store(KEY, b"code")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o077 == 0


# The key ------------------------------------------------------------------------------------------


def test_whatever_decides_a_kernel_is_in_its_key(monkeypatch):
    content = (("graph", ("i", "f"), "float32"), ("forward", True, 1), host())
    keys = [cache.key(*content), cache.key(content[0], ("forward", False, 1), host()), cache.key(*content[:2])]
    for name in ("__version__", "_WRITER"):
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, "other")
            keys.append(cache.key(*content))
    for module, name, value in (
        (cache.llvmlite, "__version__", "0"),
        (cache.llvm, "llvm_version_info", (1, 2, 3)),
        (cache.llvm, "get_default_triple", lambda: "other"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            keys.append(cache.key(*content))
    assert len(set(keys)) == len(keys) == 8
    assert cache.key(*content) == keys[0]


PLAIN = Variant()


@pytest.mark.parametrize("change", ["cell", "dtype", "size", "variant", "machine"])
def test_another_kernel_has_another_entry(folder, change, monkeypatch):
    monkeypatch.setattr(kernels, "_CACHE", {})
    written = []
    monkeypatch.setattr(kernels, "compile_module", lambda text, machine: compile_module(RETURNS_42, machine))
    monkeypatch.setattr(kernels, "Function", lambda name, slots, code: written.append(slots))

    def ask(cell, dtype, hidden, variant=PLAIN):
        made = kernels.kernels_for(cell.graph, cell.gates, cell.states, cell.vectors, dtype, variant)
        made.forward(made.tiling(4, hidden), save=True)
        made.backward(made.tiling(4, hidden))

    ask(cells.rnn_tanh, "float32", 4)
    first = set(names(folder))
    assert len(first) == 2
    if change == "machine":
        other = type(host())(**{**vars(host()), "features": "+other"})
        monkeypatch.setattr(kernels, "_CACHE", {})
        monkeypatch.setattr(kernels, "host", lambda: other)
        monkeypatch.setattr(kernels, "Code", lambda code, machine: None)
    ask(
        cells.rnn_relu if change == "cell" else cells.rnn_tanh,
        "float64" if change == "dtype" else "float32",
        64 if change == "size" else 4,
        Variant(resets=change == "variant"),
    )
    assert len(set(names(folder)) - first) == 2
    assert len(written) == 4


def test_the_fingerprint_covers_every_writer(monkeypatch):
    """One byte more in any file that shapes a kernel, and so in any that those import, is another fingerprint."""
    nothing = {"recollect", "recollect.errors", "recollect.graph"}  # these write no code
    writers, waiting = set(), ["recollect.engine.llvm.forward", "recollect.engine.llvm.backward"]
    while waiting:
        module = waiting.pop()
        if module in MODULES and module not in writers | nothing:
            writers.add(module)
            waiting += imports(module).when_loaded
    assert {"recollect.engine.plan", "recollect.graph.graph", "recollect.graph.ops.row"} <= writers

    read = Path.read_bytes
    assert cache._writer() == cache._WRITER
    found = {cache._writer()}
    for module in writers:
        monkeypatch.setattr(Path, "read_bytes", lambda path, it=MODULES[module]: read(path) + b" " * (path == it))
        found.add(cache._writer())
    assert len(found) == len(writers) + 1


# Entries that are not what they should be ---------------------------------------------------------

PAYLOAD = bytes(range(256)) * 8


def entry(folder):
    cache.store(KEY, PAYLOAD)
    assert cache.load(KEY) == PAYLOAD
    (path,) = folder.iterdir()
    return path


def test_no_flipped_byte_goes_unseen(folder):
    path = entry(folder)
    whole = path.read_bytes()
    for offset in range(0, len(whole), len(whole) // 110):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x40]) + whole[offset + 1 :])
        assert cache.load(KEY) is None, f"byte {offset}"
    path.write_bytes(whole)
    assert cache.load(KEY) == PAYLOAD


def test_no_truncation_goes_unseen(folder):
    path = entry(folder)
    whole = path.read_bytes()
    for length in (*range(120), *range(120, len(whole), 37), len(whole) - 1):
        path.write_bytes(whole[:length])
        assert cache.load(KEY) is None, f"{length} bytes"
    path.write_bytes(whole + b"\0")
    assert cache.load(KEY) is None


def test_an_entry_under_another_name_is_refused(folder):
    path = entry(folder)
    other = hashlib.sha256(b"other content").hexdigest()
    path.rename(folder / f"{other}.kernel")
    assert cache.load(other) is None


def _directory(path):
    path.unlink()
    path.mkdir()
    (path / "something").write_text("in it")


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _link(path):
    elsewhere = path.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1  # in the native code
    path.write_bytes(data)


SPOILED = {
    "flipped": _flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_text("#!/bin/sh\nexit 1\n"),
    "object code alone": lambda path: path.write_bytes(compile_module(RETURNS_42, host())),
    "a directory": _directory,
    "a pipe": _pipe,
    "a link": _link,
    "writable by others": lambda path: path.chmod(0o622),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_entry_is_compiled_again_and_replaced(spoil, folder, compiled, call):
    true = call()
    paths = list(folder.iterdir())
    for path in paths:
        SPOILED[spoil](path)
    for ours, each in zip(call(), true, strict=True):
        assert_bits(ours, each)
    assert len(compiled) == 4
    call()
    assert len(compiled) == 4, "the entries were replaced"
    assert all(path.is_file() and not path.is_symlink() for path in paths)


# Whoever can only write into the directory -------------------------------------------------------

# What the processor would run: an attacker's object file that keeps to every other rule.
CODE = b"ret"


def _without_a_key(path, own):
    return cache.MAGIC + bytes.fromhex(KEY) + hashlib.sha256(CODE).digest() + CODE


def _of_the_first_format(path, own):
    return b"RECKERN1" + bytes.fromhex(KEY) + hashlib.sha256(CODE).digest() + CODE


def _under_a_key_of_theirs(path, own):
    return cache._head(bytes(secret.SIZE), KEY, CODE) + CODE


def _of_another_entry(path, own):
    return cache._head(own, hashlib.sha256(b"other content").hexdigest(), CODE) + CODE


def _renamed(path, own):
    other = bytearray(_of_another_entry(path, own))
    other[len(cache.MAGIC) : len(cache.MAGIC) + 32] = bytes.fromhex(KEY)
    return bytes(other)


def _another_payload(path, own):
    whole = path.read_bytes()
    return whole[: -len(PAYLOAD)] + CODE


FORGED = [_without_a_key, _of_the_first_format, _under_a_key_of_theirs, _of_another_entry, _renamed, _another_payload]


@pytest.mark.parametrize("forge", FORGED, ids=lambda forge: forge.__name__)
def test_nothing_counts_that_was_written_without_the_users_own_key(forge, folder):
    path = entry(folder)
    path.write_bytes(forge(path, secret.key(folder, create=False)))
    path.chmod(0o600)
    assert cache.load(KEY) is None
    cache.clear()
    assert names(folder) == [], "it is cleared as one of ours"


def test_the_key_is_private_and_apart_from_the_kernels(folder, tmp_path):
    cache.store(KEY, PAYLOAD)
    (path,) = (tmp_path / "state" / "recollect").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_bytes() == secret.key(folder, create=False)
    assert len(set(path.read_bytes())) > 8, "random bytes"


def test_where_the_key_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        assert secret.directory() == tmp_path / ".local" / "state" / "recollect"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert secret.directory() == tmp_path / "xdg" / "recollect"


def _linked_file(path):
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def _linked_directory(path):
    path.parent.rename(path.parent.parent / "elsewhere")
    path.parent.symlink_to(path.parent.parent / "elsewhere")


def _pipe_as_key(path):
    path.unlink()
    os.mkfifo(path, 0o600)


UNSAFE = {
    "a link": (_linked_file, "is no file"),
    "a link to its directory": (_linked_directory, "is no directory"),
    "a pipe": (_pipe_as_key, "is no file"),
    "readable by others": (lambda path: path.chmod(0o640), "has mode 640"),
    "writable by others": (lambda path: path.chmod(0o602), "has mode 602"),
    "its directory open": (lambda path: path.parent.chmod(0o750), "has mode 750"),
    "short": (lambda path: path.write_bytes(bytes(secret.SIZE - 1)), "no key of 32 bytes"),
    "long": (lambda path: path.write_bytes(bytes(secret.SIZE + 1)), "no key of 32 bytes"),
    "empty": (lambda path: path.write_bytes(b""), "no key of 32 bytes"),
    "of another user": (lambda path: os.chown(path, 12345, -1), "belongs to user 12345"),
    "its directory of another user": (lambda path: os.chown(path.parent, 12345, -1), "belongs to user 12345"),
}


@pytest.mark.parametrize("spoil", UNSAFE)
def test_a_key_that_others_could_have_put_there_or_read_is_none_and_it_is_said_once(spoil, folder, tmp_path):
    if "another user" in spoil and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    cache.store(KEY, PAYLOAD)
    change, reason = UNSAFE[spoil]
    change(tmp_path / "state" / "recollect" / "kernels.key")
    with pytest.warns(UserWarning, match=f"{reason}.*delete it, or let XDG_STATE_HOME"):
        assert cache.load(KEY) is None
    cache.store("0" * 64, PAYLOAD)  # warnings are errors here
    assert names(folder) == [f"{KEY}.kernel"]


def test_a_key_within_the_directory_of_the_kernels_is_none(folder, monkeypatch):
    for place in (folder, folder / "below", folder.parent):
        monkeypatch.setenv("XDG_STATE_HOME", str(place))
        monkeypatch.setenv("RECOLLECT_CACHE_DIR", str(folder if place != folder.parent else place / "recollect"))
        with pytest.warns(UserWarning, match="replace the key too"):
            cache.store(KEY, PAYLOAD)
        assert cache.load(KEY) is None


@pytest.mark.parametrize("place", ["no home", "a file"])
def test_without_a_place_for_the_key_nothing_is_kept(place, folder, tmp_path, monkeypatch):
    if place == "a file":
        (tmp_path / "state").write_text("not a directory")
    else:
        monkeypatch.delenv("XDG_STATE_HOME")

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", no_home)
    cache.store(KEY, PAYLOAD)
    assert cache.load(KEY) is None
    assert not folder.exists() or names(folder) == []


def test_processes_that_start_at_once_make_one_key(folder, tmp_path):
    folder.mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path; from recollect.engine.llvm import secret; sys.stdin.readline();"
        f"print(secret.key(Path({str(folder)!r}), create=True).hex())"
    )
    pipe = subprocess.PIPE
    started = [subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    keys = {process.communicate(timeout=120)[0].strip() for process in started}
    assert keys == {secret.key(folder, create=False).hex()}
    assert names(tmp_path / "state" / "recollect") == ["kernels.key"], "nothing unfinished"


# Directories that cannot be used ------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_can_write_to_is_not_used_and_it_is_said_once(mode, folder, call, compiled):
    cache.store(KEY, PAYLOAD)
    folder.chmod(mode)
    with pytest.warns(UserWarning, match=f"{mode:o}.*mode 700.*RECOLLECT_CACHE_DIR"):
        call()
    call()  # warnings are errors here
    assert cache.load(KEY) is None
    assert len(compiled) == 4
    assert names(folder) == [f"{KEY}.kernel"]
    folder.chmod(0o700)
    assert cache.load(KEY) == PAYLOAD


def test_a_directory_of_somebody_else_is_not_used(folder, monkeypatch):
    cache.store(KEY, PAYLOAD)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.warns(UserWarning, match=f"belongs to user {me}"):
        assert cache.load(KEY) is None


def _a_file(folder):
    folder.parent.mkdir()
    folder.write_text("not a directory")


def _below_a_file(folder):
    folder.parent.write_text("not a directory")


def _a_dangling_link(folder):
    folder.parent.mkdir()
    folder.symlink_to(folder.parent / "nowhere")


@pytest.mark.parametrize("make", [_a_file, _below_a_file, _a_dangling_link])
def test_where_there_can_be_no_directory_kernels_are_compiled(make, folder, call, compiled):
    make(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert len(compiled) == 2


@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("mkdir", errno.EROFS),
        ("open", errno.EACCES),
        ("fsync", errno.ENOSPC),
        ("replace", errno.EDQUOT),
        ("scandir", errno.EIO),
        ("utime", errno.EROFS),
        ("link", errno.EPERM),  # for the key: some file systems have none
    ],
)
def test_a_disk_that_refuses_is_no_error(function, code, folder, call, compiled, monkeypatch):
    if function in ("open", "utime"):
        call()

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, refuse)
    call()
    call()
    if function in ("scandir", "utime"):
        assert len(compiled) == 2, "what cannot be marked as used, or counted, can be used"
    else:
        assert len(compiled) == (6 if function == "open" else 4)
        monkeypatch.undo()
        assert not folder.exists() or len(names(folder)) == (2 if function == "open" else 0), "nothing half written"


@pytest.mark.parametrize("value", ["", "0", "off", "OFF"])
def test_it_can_be_switched_off(value, tmp_path, monkeypatch, call, compiled):
    monkeypatch.setenv("RECOLLECT_CACHE_DIR", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cache.directory() is None
    call()
    call()
    cache.clear()
    assert len(compiled) == 4
    assert names(tmp_path) == []


def test_where_the_directory_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RECOLLECT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.directory() == tmp_path / ".cache" / "recollect"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.directory() == tmp_path / ".cache" / "recollect"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg" / "recollect"
    monkeypatch.setenv("RECOLLECT_CACHE_DIR", str(tmp_path / "mine"))
    assert cache.directory() == tmp_path / "mine"


def test_the_suite_does_not_use_the_users_home():
    assert "RECOLLECT_CACHE_DIR" in os.environ
    assert str(cache.directory()) == os.environ["RECOLLECT_CACHE_DIR"]
    assert cache.directory() != Path.home() / ".cache" / "recollect"


# Size and clearing --------------------------------------------------------------------------------


def test_what_was_not_used_for_longest_goes_first(folder, monkeypatch):
    keys = [hashlib.sha256(bytes([number])).hexdigest() for number in range(8)]
    for age, key in enumerate(keys[:6]):
        cache.store(key, PAYLOAD)
        os.utime(folder / f"{key}.kernel", (1000 + age, 1000 + age))
    (folder / "notes.txt").write_text("not an entry" * 10_000)
    stray = folder / f".{keys[7]}.kernel.abc123.tmp"
    stray.write_bytes(b"of a process that was killed")
    os.utime(stray, (0, 0))
    size = (folder / f"{keys[0]}.kernel").stat().st_size
    assert cache.load(keys[0]) == PAYLOAD  # used: now the youngest
    monkeypatch.setattr(cache, "LIMIT", 3 * size)
    cache.store(keys[6], PAYLOAD)
    kept = [number for number, key in enumerate(keys) if (folder / f"{key}.kernel").exists()]
    assert kept == [0, 5, 6]
    assert not stray.exists()
    assert (folder / "notes.txt").exists()


def test_clearing_deletes_the_kernels_and_nothing_else(folder):
    cache.clear()  # of nothing
    entry(folder)
    others = ["notes.txt", "x.kernel", f"{KEY}.kernel.bak", f"{KEY[:-1]}.kernel"]
    for name in others:
        (folder / name).write_text("mine")
    (folder / f".{KEY}.kernel.k3_x.tmp").write_text("unfinished")
    cache.clear()
    assert names(folder) == sorted(others)
    assert cache.load(KEY) is None


# Processes at once --------------------------------------------------------------------------------

CHILD = """
import sys, torch
from recollect import nn
from recollect.engine.llvm import kernels
compile_module, compiled = kernels.compile_module, []
def counting(*arguments):
    compiled.append(1)
    return compile_module(*arguments)
kernels.compile_module = counting
torch.manual_seed(0)
layer, x = nn.RNN(3, 5), torch.randn(4, 2, 3)
print("ready", flush=True)
sys.stdin.readline()
y, h = layer(x)
(y.square().sum() + h.sum()).backward()
results = [y.detach(), h.detach(), *(each.grad for each in layer.parameters())]
print(len(compiled), *[number.hex() for each in results for number in each.flatten().tolist()])
"""


def test_processes_that_start_at_once_on_an_empty_directory(folder, call, compiled):
    start = [sys.executable, "-W", "error", "-c", CHILD]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(start, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    printed = []
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in started:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            printed.append(out.split())
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert max(int(count) for count, *_ in printed) == 2
    assert len(names(folder)) == 2, "two entries, and nothing unfinished"
    true = [number.hex() for each in call() for number in each.flatten().tolist()]
    assert not compiled, "what they left is whole"
    assert all(numbers == true for _, *numbers in printed)
