"""The elements of a JSON array, or JSON objects in a row, one after another, however many there are."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from io import BufferedReader

from edgetune.data.chunks import Faults, ReadingError
from edgetune.data.json_text import JsonReader, reason_of
from edgetune.data.lines import LINE_LIMIT
from edgetune.units import format_bytes

_BLOCK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


def read_array(
    stream: BufferedReader, faults: Faults, limit: int = LINE_LIMIT
) -> Iterator[tuple[int, object]]:
    """Yield the number, counted from 1, and the value of each element of the array in a file.

    One that has a key twice is noted and left out.

    Raises:
        ReadingError: where the file stops being JSON in UTF-8.
    """
    text = _Text(stream, limit)
    text.expect("[")
    text.row = 1
    while not (text.row == 1 and text.next_is("]")):
        value = text.value()
        if problem := text.json.problem():
            faults.add(text.row, problem)
        else:
            yield text.row, value
        if text.next_is("]"):
            break
        text.expect(",")
        text.row += 1
    text.take()
    if not text.next_is(""):
        raise ReadingError(
            f"it is not JSON: there is more after the end of the list, row {text.row}."
        )


def read_objects(
    stream: BufferedReader, faults: Faults, limit: int = LINE_LIMIT
) -> Iterator[tuple[int, object]]:
    """Yield number and value of JSON values that may be written over several lines each.

    Raises:
        ReadingError: where the file stops being JSON in UTF-8.
    """
    text = _Text(stream, limit)
    while not text.next_is(""):
        text.row += 1
        value = text.value()
        if problem := text.json.problem():
            faults.add(text.row, problem)
        else:
            yield text.row, value


class _Text:
    """A window on the text of a file, from where reading has come to, the ``row``-th element."""

    def __init__(self, stream: BufferedReader, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.json, self.row = JsonReader(), 0
        self._decode = getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at, self._ended = "", 0, False
        self._fault: str | None = None

    def next_is(self, character: str) -> bool:
        """Tell what comes next, space apart; nothing (``""``) does at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1] == character
            self._more()

    def take(self) -> None:
        """Go on behind the next character."""
        self._at += 1

    def expect(self, character: str) -> None:
        """Go on behind a character that must come next."""
        if not self.next_is(character):
            found = self._text[self._at : self._at + 1] or "the end of the file"
            raise ReadingError(
                f"it is not JSON: after row {self.row}, Expecting {character!r}, found {found!r}."
            )
        self.take()

    def value(self) -> object:
        """Return the next value and go on behind it."""
        self.next_is("")
        while True:
            try:
                value, end = self.json.value_at(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except ValueError as error:
                if self._ended:
                    raise ReadingError(
                        f"it is not JSON: {reason_of(error)} in row {self.row}."
                    ) from error
            except RecursionError as error:
                raise ReadingError(f"it is nested too deeply in row {self.row}.") from error
            if len(self._text) - self._at > self._limit:
                raise ReadingError(
                    f"it is not JSON, or row {self.row} is longer than {format_bytes(self._limit)}."
                )
            self._more()

    def _more(self) -> None:
        """Read on, as much again as is here, so that a long row is not parsed often."""
        self._text = self._text[self._at :]
        self._at = 0
        if self._fault:
            raise ReadingError(f"{self._fault} in row {self.row}. Save it as UTF-8.")
        raw = self._stream.read(max(_BLOCK, len(self._text)))
        self._ended = not raw
        whole, nul, _ = raw.partition(b"\0")
        try:
            self._text += self._decode(whole, self._ended)
        except UnicodeDecodeError as error:
            self._text += error.object[: error.start].decode()
            self._fault = "it is not UTF-8"
        else:
            self._fault = "there are NUL bytes" if nul else None
