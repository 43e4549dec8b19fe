"""Lines of a file as text, with a limit on their length so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import count

from edgetune.data.problems import Problems
from edgetune.units import format_bytes

LINE_LIMIT = 1 << 24
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Line:
    """A line's number, counted from 1, and its text without the line's end."""

    number: int
    text: str


def read_lines(
    stream: BufferedReader, prefix: str, problems: Problems, limit: int = LINE_LIMIT
) -> Iterator[Line]:
    """Yield the lines of a UTF-8 file; one that is too long or not UTF-8 is noted and left out."""
    for number in count(1):
        raw = stream.readline(limit + 1)
        if number == 1 and raw.startswith(_UTF16_MARKS):
            problems.add(f"{prefix}1", "The file is UTF-16. Save it as UTF-8.")
            return
        if not raw:
            return
        if len(raw) > limit:
            problems.add(f"{prefix}{number}", f"The line is longer than {format_bytes(limit)}.")
            _skip(stream, raw, limit)
            continue
        text = _decoded(raw.removeprefix(_UTF8_MARK) if number == 1 else raw)
        if text is None:
            problems.add(f"{prefix}{number}", "The line is not UTF-8. Save the file as UTF-8.")
        else:
            yield Line(number, text)


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        return None


def _skip(stream: BufferedReader, raw: bytes, limit: int) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(limit)
