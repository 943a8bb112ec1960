"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import secrets
import stat
from pathlib import Path

_BINARY = getattr(os, "O_BINARY", 0)  # of Windows, whose newlines it leaves alone


def write_atomically(path: str | os.PathLike[str], data: bytes | str, *, private: bool = False) -> None:
    """Write ``data`` to ``path`` through a temporary name in the same folder and a rename.

    A reader sees the old file or the new one, never half of either, and once this returns the new one is
    on the disk; after a crash at most a stray ``.tmp`` file is left (`remove_leftovers`). Text is encoded
    as UTF-8. Another file than a ``private`` one is as public as its folder says, or as the file was that it replaces.
    A link stays one, and what it leads to is replaced. What is no file, such as ``/dev/null`` or a pipe, is written to
    as it is. Only the user can read a ``private`` file, and it takes the place of whatever has its name, a link or a
    pipe too, since others may have put that there.

    Raises:
        OSError: the folder does not exist or cannot be written; ``path``, which it names, is then as it was.
    """
    payload = data.encode("utf-8") if isinstance(data, str) else data
    try:
        mode = None if private else _mode(path)
        if private:
            _replace(Path(path), payload, None, private)
        elif mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            with open(path, "wb", buffering=0) as device:
                device.write(payload)
        else:
            _replace(Path(os.path.realpath(path)), payload, None if mode is None else stat.S_IMODE(mode), private)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete the temporary files that a killed ``write_atomically(path, ...)`` left; only its writer may."""
    target = Path(os.path.realpath(path))
    for stray in target.parent.glob(f"{glob.escape(_prefix(target))}*.tmp"):
        stray.unlink(missing_ok=True)


def _replace(target: Path, payload: bytes, mode: int | None, private: bool) -> None:
    temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.tmp")
    try:
        # The system takes the umask off. To ask for it is to set it, for all threads.
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _BINARY, 0o600 if private else 0o666)
        with open(handle, "wb") as file:
            if mode is not None and os.name == "posix":
                os.fchmod(handle, mode)
            file.write(payload)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _mode(path: str | os.PathLike[str]) -> int | None:
    """Kind and permissions of what is at ``path`` or where a link leads from there; None if nothing is."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_mode
    return None


def _prefix(target: Path) -> str:
    """The beginning of a temporary file's name, short enough where ``target`` has the longest name there can be."""
    name = target.name
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def _sync_folder(folder: Path) -> None:
    # The name is in the folder, not in the file: without this a crash of the machine can bring the old one back.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
