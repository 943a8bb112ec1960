"""The key that proves of a kernel on disk that this user's own processes wrote it.

Random bytes in a file that only the user can read, in a directory that only the user can enter. It lies apart from the
kernels: whoever can write into their directory, as into a volume that containers share, or one that is unpacked from an
archive, could replace a key that lay there too.

The directory is ``recollect`` in ``XDG_STATE_HOME``, or else in ``~/.local/state``. Where it cannot be made, there is
no key and so no cache, without a word; where there is something that others could have put there, that is said.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SIZE = 32  # bytes
_NAME = "kernels.key"


class UnsafeError(Exception):
    """The file or folder of the key cannot be trusted; the text says what it is and why."""


def directory() -> Path | None:
    """Where the key lies; None where there is no home."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        # As the XDG specification has it, a relative path counts as unset.
        return (base if base.is_absolute() else Path.home() / ".local" / "state") / "recollect"
    except RuntimeError:
        return None


def key(kernels: Path, *, create: bool) -> bytes | None:
    """The key of this user.

    Args:
        kernels: the directory of what it vouches for.
        create: make one where there is none.

    Returns:
        `SIZE` bytes, the same for all processes of this user; None where there is none.

    Raises:
        UnsafeError: others could have put it there, or read it.
        OSError: it cannot be read or made.
    """
    folder = directory()
    if folder is None:
        return None
    if create:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _check(folder, os.lstat(folder), stat.S_ISDIR, "directory")
        if any(os.path.samefile(kernels, parent) for parent in (folder, *folder.resolve().parents)):
            raise UnsafeError(
                f"{folder} lies in {kernels}, so that whoever writes kernels there can replace the key too"
            )
        path = folder / _NAME
        if create and not os.path.lexists(path):
            _make(path)
        return _read(path)
    except FileNotFoundError:
        return None


def _make(path: Path) -> None:
    """Make a key, unless another process was first: a link is there with all its bytes, or not at all."""
    temporary = path.with_name(f".{_NAME}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SIZE))
            file.flush()
            os.fsync(handle)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _read(path: Path) -> bytes:
    _check(path, os.lstat(path), stat.S_ISREG, "file")
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        # Of the open file, so that it is the one that is read, whatever happens to its name.
        _check(path, os.fstat(handle), stat.S_ISREG, "file")
        found = file.read(SIZE + 1)
    if len(found) != SIZE:
        raise UnsafeError(f"{path} holds no key of {SIZE} bytes")
    return found


def _check(path: Path, status: os.stat_result, is_kind: Callable[[int], bool], kind: str) -> None:
    """Raise UnsafeError unless a path is of a kind, not a link to one, and the user's alone."""
    if not is_kind(status.st_mode):
        raise UnsafeError(f"{path} is no {kind}")
    if status.st_uid != os.geteuid():
        raise UnsafeError(f"{path} belongs to user {status.st_uid}")
    if status.st_mode & 0o077:
        raise UnsafeError(f"{path} has mode {stat.S_IMODE(status.st_mode):o}, which lets others in")
