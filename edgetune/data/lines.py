"""Lines of a file as text, with a limit on their length so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from itertools import count

from edgetune.data.blocks import Faults
from edgetune.units import format_bytes

LINE_LIMIT = 1 << 24
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
NOT_UTF16 = "The file is UTF-16. Save it as UTF-8."
_NULS = "There are NUL bytes in this line. Remove them, or save the file as UTF-8."
_NO_TEXT = "The file is full of NUL bytes: it is UTF-16, or no text at all. Save it as UTF-8."

NumberedLines = Iterator[tuple[int, str]]


def read_lines(stream: BufferedReader, faults: Faults, limit: int = LINE_LIMIT) -> NumberedLines:
    """Yield number and text of the lines of a UTF-8 file, without the lines' ends.

    Lines are counted from 1. One that is too long, not UTF-8 or no text is noted and left out.
    """
    for number in count(1):
        raw = stream.readline(limit + 1)
        if not raw:
            return
        if number == 1 and raw.startswith(UTF16_MARKS):
            faults.add(1, NOT_UTF16)
            return
        if number == 1 and raw.count(b"\0") * 4 > len(raw):
            faults.add(1, _NO_TEXT)
            return
        if len(raw) > limit:
            faults.add(number, f"The line is longer than {format_bytes(limit)}.")
            _skip(stream, raw, limit)
            continue
        if b"\0" in raw:
            faults.add(number, _NULS)
            continue
        try:
            text = (raw.removeprefix(UTF8_MARK) if number == 1 else raw).decode("utf-8")
        except UnicodeDecodeError:
            faults.add(number, "The line is not UTF-8. Save the file as UTF-8.")
        else:
            yield number, text.rstrip("\r\n")


def _skip(stream: BufferedReader, raw: bytes, limit: int) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(limit)
