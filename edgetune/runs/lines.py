"""Logs of one JSON object a line, which only grow; a line that was cut off does not count."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeGuard

from edgetune.files import parsed_json, replacing

LONGEST: Final = 1 << 20
"""Bytes of a line; ours have a few hundred."""

MOST: Final = 2.0**128
"""Above everything that a run measures: the largest float32 is just below it."""

MOST_STEPS: Final = 1 << 62
"""Above every step that is taken."""

LONGEST_MARK: Final = 1 << 12
"""Bytes of the last line that a log is known again by."""

_KINDS: Final = ("event", "what")
"""What a line of a log is of: the one in the metrics, the other in the journal."""

_NUMBERS: Final = frozenset({int, float})


def append_line(path: Path, value: Any) -> None:
    """Add one object to a log; it has left this process when this returns.

    Raises:
        OSError: if it cannot be written, or something else than a file is at its place.
    """
    if path.exists() and not path.is_file():  # a pipe would wait for a reader
        raise OSError(errno.EINVAL, f"{path.name} is not a file")
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(value, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log, none if it is not there."""
    return [line for _, line in _whole(path)]


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> int:
    """Drop the lines that are not wanted or not whole; return how many there were.

    Raises:
        OSError: if the log cannot be read or written; it is as it was then.
    """
    total = sum(1 for _ in _texts(path))
    kept = sum(1 for _, line in _whole(path) if wanted(line))
    if kept < total:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.writelines(text for text, line in _whole(path) if wanted(line))
    return total - kept


def is_measured(value: object) -> bool:
    """Return whether a value of a log is a number that a run can have measured.

    >>> is_measured(2.5), is_measured(0), is_measured(True), is_measured(1e300), is_measured(10**400)
    (True, True, False, False, False)
    """
    return type(value) in _NUMBERS and -MOST < value < MOST  # type: ignore[operator]


def is_step(value: object) -> TypeGuard[int]:
    """Return whether a value of a log is the number of a step, 0 before the first."""
    return type(value) is int and 0 <= value < MOST_STEPS


@dataclass(slots=True)
class LogTail:
    """What was added to a log since it was last looked at."""

    path: Path
    _inode: int = field(default=0, init=False)
    offset: int = field(default=0, init=False)
    """Bytes that were read."""
    _last: bytes = field(default=b"", init=False)
    """The line before the offset: if it is not there any more, this is another log."""

    def read(self, most: int | None = None) -> tuple[bool, list[dict[str, Any]]]:
        """Return whether the log began anew, and the objects of its new lines, ``most`` at once."""
        if not self.path.is_file():
            return self._restart(), []
        with self.path.open("rb") as file:
            anew = not self._continues(file) and self._restart()
            self._inode = os.fstat(file.fileno()).st_ino
            file.seek(self.offset)
            texts = islice(self._lines(file), most)
            return anew, [line for text in texts if (line := line_of(text)) is not None]

    def _continues(self, file: BinaryIO) -> bool:
        if os.fstat(file.fileno()).st_ino != self._inode:
            return False
        file.seek(self.offset - len(self._last))
        return file.read(len(self._last)) == self._last

    def _restart(self) -> bool:
        self.offset, self._last = 0, b""
        return True

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the lines that have come to their end."""
        while text := file.readline(LONGEST):
            if not text.endswith(b"\n") and len(text) < LONGEST:
                return  # it is being written
            self.offset, self._last = self.offset + len(text), text[-LONGEST_MARK:]
            yield text


def line_of(text: bytes) -> dict[str, Any] | None:
    """Return the object of a whole line, None if it is none or does not say in text what it is of."""
    if text.endswith(b"\n"):
        with suppress(ValueError):
            line = parsed_json(text)
            if isinstance(line, dict) and all(isinstance(line.get(x, ""), str) for x in _KINDS):
                return line
    return None


def _whole(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines that are an object, as they stand and as values."""
    for text in _texts(path):
        if (line := line_of(text)) is not None:
            yield text, line


def _texts(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, one that is too long in pieces that do not end."""
    if not path.is_file():  # a device would never end
        return
    with path.open("rb") as file:
        while text := file.readline(LONGEST):
            yield text
