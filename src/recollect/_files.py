"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes | str, *, private: bool = False) -> None:
    """Write ``data`` to ``path`` through a temporary name in the same folder and a rename.

    A reader sees the old file or the new one, never half of either, and once this returns the new one is
    on the disk; after a crash at most a stray ``.tmp`` file is left (`remove_leftovers`). Text is encoded
    as UTF-8. Only the user can read a ``private`` file.

    Raises:
        OSError: the folder does not exist or cannot be written; ``path`` is then as it was.
    """
    target = Path(path)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if not private:  # as mkstemp makes files; a model or a report is as public as its folder says
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete the temporary files that a killed ``write_atomically(path, ...)`` left; only its writer may."""
    target = Path(path)
    for stray in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        stray.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # The name is in the folder, not in the file: without this a crash of the machine can bring the old one back.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
