"""Compiled kernels on disk: what was compiled once is not compiled again by the next process.

A file is ``MAGIC``, the name [32], the HMAC-SHA256 [32] of all the rest under a key of the user's own
(`secret`), and the payload. The name is a hash of all that decides the payload, so an entry is never out of
date and two processes that write it at once write the same. Native code is run from it, and whoever can
write into the directory without having the key must not get code of theirs to run: an entry counts only if
its HMAC does. A directory or a file that somebody else could have written is not even read; a directory like
that is said once, because its owner can put it right.

Nothing here is ever fatal, and a disk that is full, read-only or absent is not even worth a warning: the
numbers are the same, and containers without a home are common.

``RECOLLECT_CACHE_DIR`` names the directory; empty, ``0`` or ``off`` means none. Without it the directory
is ``recollect`` in ``XDG_CACHE_HOME``, or else in ``~/.cache``.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from recollect import __version__
from recollect._files import write_atomically
from recollect.engine.llvm import secret

MAGIC = b"RECKERN2"
LIMIT = 256 * 2**20  # bytes; beyond, what was not used for longest goes

_OURS = re.compile(r"\.?[0-9a-f]{64}\.kernel(\.\w+\.tmp)?")  # an entry, or one that was never finished
_DIGEST = hashlib.sha256().digest_size
_said: set[str] = set()


def _writer() -> str | None:
    """A hash of the code that decides what a kernel is; None where there is no source to hash."""
    root = Path(__file__).parents[2]
    found = hashlib.sha256()
    try:
        ours = sorted((root / "engine" / "llvm").glob("*.py"))
        rows = sorted((root / "graph" / "ops").glob("*.py"))
        for path in (
            *ours,
            *rows,
            root / "engine" / "plan.py",
            root / "engine" / "waves.py",
            *(root / "graph" / f"{name}.py" for name in ("graph", "derivatives", "gates")),
        ):
            found.update(hashlib.sha256(path.read_bytes()).digest())
    except OSError:
        return None
    return found.hexdigest() if ours and rows else None


# Read while the modules that it describes are loaded: a file that is edited later does not describe what runs.
_WRITER = _writer()


def directory() -> Path | None:
    """Where kernels are kept; None where they are not."""
    named = os.environ.get("RECOLLECT_CACHE_DIR")
    if _WRITER is None or not hasattr(os, "geteuid"):  # without owners there is no telling whose code it is
        return None
    if named is not None:
        return None if named.lower() in ("", "0", "off") else Path(named).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # As the XDG specification has it, a relative path counts as unset.
        return (base if base.is_absolute() else Path.home() / ".cache") / "recollect"
    except RuntimeError:  # there is no home
        return None


def key(*content: object) -> str:
    """The name of an entry, from what decides it besides this package and LLVM; content has an exact ``repr``."""
    versions = (__version__, _WRITER, llvmlite.__version__, llvm.llvm_version_info, llvm.get_default_triple())
    return hashlib.sha256(repr((versions, content)).encode()).hexdigest()


def load(key: str) -> bytes | None:
    """The payload that was stored under a key; None where there is none, or none that this user's processes wrote."""
    folder = directory()
    if folder is None:
        return None
    with suppress(OSError):
        own = _own_key(folder, create=False)
        if own is None:
            return None
        data = _read(folder / f"{key}.kernel")
        start = len(MAGIC) + 2 * _DIGEST
        payload = data[start:]
        if hmac.compare_digest(data[:start], _head(own, key, payload)):
            with suppress(OSError):
                os.utime(folder / f"{key}.kernel")  # used now: the last to go
            return payload
    return None


def store(key: str, payload: bytes) -> None:
    """Keep a payload under a key, if that can be done."""
    folder = directory()
    if folder is None:
        return
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = _own_key(folder, create=True)
        if own is None:
            return
        path = folder / f"{key}.kernel"
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        write_atomically(path, _head(own, key, payload) + payload, private=True)
        _trim(folder)


def _head(own: bytes, key: str, payload: bytes) -> bytes:
    """The head of an entry, which stands before its payload; only who has the user's own key can write it."""
    named = MAGIC + bytes.fromhex(key)
    proof = hmac.new(own, named, hashlib.sha256)
    proof.update(payload)
    return named + proof.digest()


def clear() -> None:
    """Delete all kernels on disk, and nothing else in their directory.

    Kernels that are in use stay in memory. Nothing happens where there is no cache.
    """
    folder = directory()
    if folder is not None:
        with suppress(OSError):
            for entry in _entries(folder):
                with suppress(OSError):
                    os.unlink(entry)


def _own_key(folder: Path, *, create: bool) -> bytes | None:
    """The key that proves entries of the directory to be this user's; None where nobody else can be ruled out.

    Raises:
        OSError: the directory is not there, or the key can neither be read nor made.
    """
    status = folder.stat()
    if _others_may_write(status):
        foreign = status.st_uid != os.geteuid()
        reason = f"belongs to user {status.st_uid}" if foreign else f"has mode {stat.S_IMODE(status.st_mode):o}"
        _say(
            f"recollect keeps no compiled kernels in {folder}, which {reason}: others can put native code there; "
            "make it a directory of your own with mode 700, or name one in RECOLLECT_CACHE_DIR"
        )
        return None
    try:
        return secret.key(folder, create=create)
    except secret.UnsafeError as problem:
        _say(
            f"recollect keeps no compiled kernels: {problem}; delete it, or let XDG_STATE_HOME name a directory of "
            "your own, outside of that of the kernels"
        )
        return None


def _say(problem: str) -> None:
    """Warn once of what the owner can put right."""
    if problem not in _said:
        _said.add(problem)
        warnings.warn(problem, stacklevel=2)


def _others_may_write(found: os.stat_result) -> bool:
    return found.st_uid != os.geteuid() or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _read(path: Path) -> bytes:
    """The bytes of a file of ours; none of anything else, and no waiting for a pipe or following of a link."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        # Of the open file, so that it is the one that is read, whatever happens to its name.
        found = os.fstat(handle)
        ours = stat.S_ISREG(found.st_mode) and not _others_may_write(found) and found.st_size <= LIMIT
        return file.read() if ours else b""


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        yield from (entry for entry in found if _OURS.fullmatch(entry.name))


def _trim(folder: Path) -> None:
    """Keep the directory within its limit."""
    files = []
    for entry in _entries(folder):
        with suppress(OSError):  # another process may have removed it
            found = entry.stat(follow_symlinks=False)
            files.append((found.st_mtime_ns, found.st_size, entry.path))
    excess = sum(size for _, size, _ in files) - LIMIT
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        with suppress(OSError):
            os.unlink(path)
        excess -= size
