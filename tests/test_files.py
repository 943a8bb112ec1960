"""Files are whole or not there, whatever stands in their place and whoever writes at the same time."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading

import pytest

from recollect import _files
from recollect._files import remove_leftovers, write_atomically

posix = pytest.mark.skipif(os.name != "posix", reason="links, devices and permissions of POSIX")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask():
    """A umask that no program has by chance; put back afterwards."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@posix
def test_permissions_are_those_of_the_folder_or_of_the_file_that_was_there(tmp_path, umask):
    for private, expected in ((False, 0o640), (True, 0o600)):
        write_atomically(tmp_path / "new", b"", private=private)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == expected
        (tmp_path / "new").unlink()
    (tmp_path / "old").touch(0o600)
    write_atomically(tmp_path / "old", b"x")
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o600


@posix
def test_nothing_of_the_process_is_changed_meanwhile(tmp_path, umask, monkeypatch):
    """A umask that is set to be read is, with two threads, sooner or later left at 0."""
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask is that of all threads"))
    threads = [threading.Thread(target=write_atomically, args=(tmp_path / str(i), b"x")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == [str(i) for i in range(8)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


@posix
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    for was_there in (False, True):
        link = tmp_path / f"link {was_there}"
        target = tmp_path / "there" / f"file {was_there}"
        link.symlink_to(target)
        if was_there:
            target.write_bytes(b"old")
        write_atomically(link, b"new")
        assert link.is_symlink()
        assert target.read_bytes() == b"new"
    assert names(tmp_path / "there") == ["file False", "file True"]


@posix
def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, "häh")
    reader.join()
    assert read == ["häh".encode()]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


@posix
def test_a_private_file_takes_the_place_of_whatever_was_put_there(tmp_path):
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_bytes(b"old")
    link.symlink_to(target)
    os.mkfifo(pipe)
    for path in (link, pipe):
        write_atomically(path, b"new", private=True)
        assert stat.S_ISREG(path.lstat().st_mode)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert target.read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's full device")
def test_a_full_device_is_an_error_that_names_the_path():
    before = os.stat("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_atomically("/dev/full", b"x")
    assert os.stat("/dev/full") == before


@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_what_fails_leaves_what_was_there_and_names_the_path(tmp_path, monkeypatch, at):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    if at == "write":
        monkeypatch.setattr(_files, "open", lambda *_: fail(), raising=False)
    else:
        monkeypatch.setattr(os, at, fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@posix
def test_a_link_that_leads_to_itself_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(tmp_path / "loop", b"x")
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize("error", [FileNotFoundError, NotADirectoryError, IsADirectoryError])
def test_places_where_no_file_can_be(tmp_path, error):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    bad = {FileNotFoundError: "no/where", NotADirectoryError: "file/below", IsADirectoryError: "folder"}
    with pytest.raises(error):
        write_atomically(tmp_path / bad[error], b"x")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("name", ["a" * 255, "ö" * 127, "[*]"])
def test_any_name_that_the_system_takes(tmp_path, name):
    write_atomically(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a" * 255, "[*]"])
def test_what_a_killed_writer_left_is_removed(tmp_path, name):
    kill = (
        "import os, sys; from recollect import _files\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "_files.write_atomically(sys.argv[1], b'x')"
    )
    assert subprocess.run([sys.executable, "-c", kill, str(tmp_path / name)], check=False).returncode == 9
    (tmp_path / "other").touch()
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path / name)
    assert names(tmp_path) == ["other"]
