"""Compiled kernels on disk: what was compiled once is not compiled again by the next process.

A file is ``MAGIC``, the key [32], the SHA-256 of the payload [32] and the payload. Its name is the key,
which is a hash of all that decides the payload, so an entry is never out of date and two processes that
write it at once write the same.

Nothing here is ever fatal, and a disk that is full, read-only or absent is not even worth a warning: the
numbers are the same, and containers without a home are common. Native code is run from it, so a directory
or a file that somebody else could have written is not read; a directory like that is said once, because
its owner can put it right.

``RECOLLECT_CACHE_DIR`` names the directory; empty, ``0`` or ``off`` means none. Without it the directory
is ``recollect`` in ``XDG_CACHE_HOME``, or else in ``~/.cache``.
"""

from __future__ import annotations

import hashlib
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

MAGIC = b"RECKERN1"
LIMIT = 256 * 2**20  # bytes; beyond, what was not used for longest goes

_OURS = re.compile(r"\.?[0-9a-f]{64}\.kernel(\.\w+\.tmp)?")  # an entry, or one that was never finished
_DIGEST = hashlib.sha256().digest_size
_said: set[Path] = set()


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
    """The payload that was stored under a key; None where there is none, or none that is whole and ours."""
    folder = directory()
    if folder is None:
        return None
    with suppress(OSError):
        if not _is_safe(folder):
            return None
        data = _read(folder / f"{key}.kernel")
        head = MAGIC + bytes.fromhex(key)
        payload = data[len(head) + _DIGEST :]
        if data == head + hashlib.sha256(payload).digest() + payload:
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
        if not _is_safe(folder):
            return
        path = folder / f"{key}.kernel"
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        data = MAGIC + bytes.fromhex(key) + hashlib.sha256(payload).digest() + payload
        write_atomically(path, data, private=True)
        _trim(folder)


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


def _is_safe(folder: Path) -> bool:
    """Whether nobody but this user can put code into the directory."""
    found = folder.stat()
    if not _others_may_write(found):
        return True
    if folder not in _said:
        _said.add(folder)
        foreign = found.st_uid != os.geteuid()
        reason = f"belongs to user {found.st_uid}" if foreign else f"has mode {stat.S_IMODE(found.st_mode):o}"
        warnings.warn(
            f"recollect keeps no compiled kernels in {folder}, which {reason}: others can put native code there; "
            "make it a directory of your own with mode 700, or name one in RECOLLECT_CACHE_DIR",
            stacklevel=2,
        )
    return False


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
