"""Lines of a file as text, with a limit on their length so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from itertools import chain, count

from edgetune.data.chunks import Faults
from edgetune.data.unpack import stream_of
from edgetune.units import format_bytes

LINE_LIMIT = 1 << 24
_BLOCK = 1 << 16
UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF16 = "The file is UTF-16. Save it as UTF-8."
_NULS = "There are NUL bytes in this line. Remove them, or save the file as UTF-8."
_NO_TEXT = "The file is full of NUL bytes: it is UTF-16, or no text at all. Save it as UTF-8."

NumberedLines = Iterator[tuple[int, str]]


def read_lines(stream: BufferedReader, faults: Faults, limit: int = LINE_LIMIT) -> NumberedLines:
    """Yield number and text of the lines of a UTF-8 file, without the lines' ends.

    Lines are counted from 1. They end in LF or CR LF, or in a file without any LF in CR. One that
    is too long, not UTF-8 or no text is noted and left out.
    """
    for number in count(1):
        raw = stream.readline(limit + 1)
        if number == 1 and b"\r" in raw and not raw.endswith(b"\n"):
            stream = _with_newlines(raw, stream)
            raw = stream.readline(limit + 1)
        if not raw:
            return
        if number == 1 and (problem := _no_text(raw)):
            faults.add(1, problem)
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


def _no_text(start: bytes) -> str | None:
    """Return why a file that begins like this cannot be read at all, None if it can."""
    if start.startswith(_UTF16_MARKS):
        return _UTF16
    return _NO_TEXT if start.count(b"\0") * 4 > len(start) else None


def _with_newlines(first: bytes, rest: BufferedReader) -> BufferedReader:
    """Return what was read and what follows with LF in place of CR."""
    blocks = chain([first], iter(lambda: rest.read(_BLOCK), b""))
    return stream_of(block.replace(b"\r", b"\n") for block in blocks)


def _skip(stream: BufferedReader, raw: bytes, limit: int) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(limit)
