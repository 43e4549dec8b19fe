"""Reading a header from its beginning, as far as it goes and no further."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

from edgetune.errors import ModelError
from edgetune.escapes import short

LARGEST_HEADER: Final = 1 << 28
"""Bytes; the vocabularies of the largest models take a tenth of it."""
LONGEST_NAME: Final = 1 << 16
LONGEST_TEXT: Final = 1 << 24
_AHEAD: Final = 1 << 16
_LENGTH: Final = struct.Struct("<Q")


class Cursor:
    """A place in the header of a file; what lies before it was read and is kept."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        """Stand at the beginning of ``stream``, a file of ``size`` bytes."""
        self.file = file
        self.size = size
        self.position = 0
        self._stream = stream
        self._data = bytearray()

    def take(self, length: int) -> bytes:
        """Return the next bytes.

        Raises:
            ModelError: if the file ends before, or the header cannot be so long.
        """
        start = self.position
        self.skip(length)
        return bytes(self._data[start : self.position])

    def skip(self, length: int) -> None:
        """Go on by so many bytes; see :meth:`take`."""
        end = self.position + length
        if end > len(self._data):
            self._read_to(end)
        self.position = end

    def since(self, start: int) -> bytes:
        """Return the bytes from a place that was passed up to here."""
        return bytes(self._data[start : self.position])

    def number(self, code: str) -> Any:
        """Return the next number, of a kind that ``struct`` knows by ``code``."""
        kind = struct.Struct(f"<{code}")
        return kind.unpack(self.take(kind.size))[0]

    def count(self, of: str, most: int) -> int:
        """Return how many ``of`` something follow.

        Raises:
            ModelError: if they are more than there can be.
        """
        found: int = self.number("Q")
        if found > most:
            raise damaged(self.file, f"it cannot have {found} {of}")
        return found

    def text(self, what: str, most: int = LONGEST_NAME) -> str:
        """Return the next text.

        Raises:
            ModelError: if it is too long or no UTF-8.
        """
        length = self.number("Q")
        if length > most:
            raise damaged(self.file, f"{what} cannot be {length} bytes long")
        raw = self.take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise damaged(self.file, f"{what} is not UTF-8: {short(raw)}") from error

    def skip_texts(self, count: int) -> None:
        """Go on by ``count`` texts; this is most of what a header holds."""
        position, data, length_of = self.position, self._data, _LENGTH.unpack_from
        for _ in range(count):
            if position + 8 > len(data):
                self._read_to(position + 8)
            length = length_of(data, position)[0]
            if length > LONGEST_TEXT:
                raise damaged(self.file, f"a text cannot be {length} bytes long")
            position += 8 + length
        if position > len(data):
            self._read_to(position)
        self.position = position

    def _read_to(self, end: int) -> None:
        if end > self.size:
            raise damaged(self.file, f"it should go on to byte {end} and has {self.size}")
        if end > LARGEST_HEADER:
            raise damaged(self.file, f"its header cannot be longer than {LARGEST_HEADER} bytes")
        missing = max(end - len(self._data), min(_AHEAD, self.size - len(self._data)))
        found = self._stream.read(missing)
        if len(found) < missing:
            raise damaged(self.file, "it became shorter while it was read")
        self._data += found


def damaged(file: Path, because: str) -> ModelError:
    """Return the error of a file that contradicts itself."""
    return ModelError(f"{file} is damaged: {because}. Fetch or copy the file again.")
