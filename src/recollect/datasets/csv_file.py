"""A CSV file as columns of text, or one clear sentence about why it is not one."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter

import numpy as np

from recollect.errors import DataError

_DELIMITERS = ",;\t"
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?([T ].*)?")


def read_columns(data: bytes, label: str) -> dict[str, np.ndarray]:
    """Read the bytes of a CSV file.

    The file is UTF-8 (a byte order mark is skipped), its first row is the header, and its delimiter is
    whichever of comma, semicolon and tab the header has most of. Empty lines are skipped, except in a
    file of one column, where an empty line before the end is a missing value.

    Args:
        data: the bytes.
        label: what to call the file in an error.

    Returns:
        For each column its entries, as an array of ``str`` objects [n], n >= 1, in the file's order.

    Raises:
        DataError: the file is empty, not UTF-8 text or not a table; has no header or no rows; names a
            column twice; or has a row of another length than its header.
    """
    header, rows = _split(_decode(data, label), label)
    for name, count in Counter(header).items():
        if count > 1:
            raise DataError(
                f"{label} has {count} columns named {name!r}",
                given=f"the header {', '.join(header)}",
                expected="a name of its own for each column",
                remedy="rename the columns in the first line",
            )
    if all(_is_value(name) for name in header):
        raise DataError(
            f"{label} has no header",
            given=f"the first line {', '.join(header)}",
            expected="the names of the columns in the first line",
            remedy="add a first line such as time,y",
        )
    if not rows:
        raise DataError(
            f"{label} has a header but no rows",
            given=f"the header {', '.join(header)}",
            expected="at least one row of data below it",
            remedy="check that the file was written to its end",
        )
    return {
        name: np.array(entries, dtype=object) for name, entries in zip(header, zip(*rows, strict=True), strict=True)
    }


def _decode(data: bytes, label: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{label} is UTF-16 text",
            expected="UTF-8 text",
            remedy="save it again as UTF-8 (in Excel: CSV UTF-8)",
        )
    if b"\0" in data:
        raise DataError(
            f"{label} is a binary file",
            given=f"a NUL byte at position {data.index(0)}",
            expected="a CSV file: text, with a header in the first line",
            remedy="export the table as CSV in UTF-8",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{label} is not UTF-8 text",
            given=f"byte 0x{data[error.start]:02x} at position {error.start}",
            expected="a CSV file in UTF-8",
            remedy="save it again as UTF-8 (in Excel: CSV UTF-8)",
        ) from None
    if not text.strip():
        raise DataError(
            f"{label} is empty",
            given=f"{len(data)} bytes",
            expected="a header in the first line and rows below it",
            remedy="check that the file was written to its end",
        )
    return text


def _split(text: str, label: str) -> tuple[list[str], list[list[str]]]:
    # Empty lines at either end mean nothing, but a tab there may be the edge of an empty field.
    text = text.strip("\r\n")
    first_line = text.splitlines()[0]
    delimiter = max(_DELIMITERS, key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        header = [name.strip() for name in next(reader)]
        for row in reader:
            if not row:
                if len(header) > 1:
                    continue
                row = [""]
            if len(row) != len(header):
                raise DataError(
                    f"{label} has a row of another length than its header, in line {reader.line_num}",
                    given=f"{len(header)} fields in the header, {len(row)} in that line",
                    expected=f"as many fields in every line, separated by {delimiter!r}",
                    remedy="correct that line, or quote a field that contains the separator",
                )
            rows.append(row)
    except csv.Error as error:
        raise DataError(
            f"{label} cannot be read as CSV near line {reader.line_num}",
            given=str(error),
            expected="fields separated by commas, quotes in pairs",
            remedy="correct that line",
        ) from None
    return header, rows


def _is_value(name: str) -> bool:
    """Whether a header field looks like data: the first row of a file without a header."""
    try:
        float(name)
    except ValueError:
        return _DATE.fullmatch(name) is not None
    return True
