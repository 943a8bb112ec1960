"""Text on its way in, from the command line, and out, to any terminal, pipe or file."""

from __future__ import annotations

import codecs
import re
import sys

_CONTROL = re.compile(r"(?!\n)[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Text with escapes in place of control characters but ends of lines, as a name in a file may drive a terminal."""
    return _CONTROL.sub(lambda control: repr(control[0])[1:-1], text)


def as_text(argument: str | None) -> str | None:
    """An argument of the command line that is no path as the UTF-8 that it is, where Python took it for ASCII.

    So it does in the locale C without its UTF-8 mode, and a name would not be found that a file has. Paths stay as they
    are, as the system gets the same bytes back.
    """
    if argument is None or _is_whole(argument):
        return argument
    return argument.encode(sys.getfilesystemencoding(), "surrogateescape").decode("utf-8", "surrogateescape")


def prepare_streams() -> None:
    """Let standard output and standard error take any text.

    ASCII means that no language was set, so they become UTF-8, as they do in Python's UTF-8 mode. What an encoding
    does not have is shown as an escape, and bytes of a path that were no text in the first place as they are.
    """
    codecs.register_error("recollect.terminal", _encode_otherwise)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where it is closed
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if is_ascii else None, errors="recollect.terminal")  # pyright: ignore[reportAttributeAccessIssue]


def _encode_otherwise(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


def _is_whole(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
