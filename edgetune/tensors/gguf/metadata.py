"""What a GGUF file says beside its tensors: numbers, texts and lists of them, by key."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.tensors.gguf.cursor import LONGEST_TEXT, Cursor, damaged
from edgetune.tensors.gguf.types import ARRAY, STRING, VALUE_TYPES, ValueType

MOST_KEYS: Final = 1 << 16
MOST_ITEMS: Final = 1 << 26
_LARGEST: Final = 3.4e38
"""What is above may be no float32."""

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Array:
    """A list of one kind, still as the bytes of the file; most are never looked at."""

    kind: ValueType
    count: int
    raw: bytes
    start: int
    """Where in the file they begin."""

    def items(self) -> list[Any]:
        """Return the items; a text that is not UTF-8 has its other bytes replaced."""
        if self.kind is not STRING:
            return list(struct.unpack(f"<{self.count}{self.kind.code}", self.raw))
        texts, position = [], 0
        for _ in range(self.count):
            length = int.from_bytes(self.raw[position : position + 8], "little")
            position += 8 + length
            texts.append(self.raw[position - length : position].decode(errors="replace"))
        return texts


class Metadata:
    """All keys of a file, each asked for as the kind that it must be."""

    def __init__(self, file: Path, values: dict[str, Scalar | Array]) -> None:
        """Take the values, which come from ``file``."""
        self.file = file
        self._values = values

    def __contains__(self, key: str) -> bool:
        """Return whether the file has a key."""
        return key in self._values

    def raw(self, key: str) -> object:
        """Return a value as it is, a list as :class:`Array`; ``None`` when missing."""
        return self._values.get(key)

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a whole number, or the default when missing."""
        value = self._asked(key, default, (int,), "a whole number")
        assert isinstance(value, int)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number, or the default when missing."""
        value = self._asked(key, default, (int, float), "a number")
        assert isinstance(value, int | float)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false, the default when missing."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text, or the default when missing."""
        value = self._asked(key, default, (str,), "a text")
        assert isinstance(value, str)
        return value

    def items(self, key: str, kind: type) -> list[Any] | None:
        """Return a list of numbers or texts, ``None`` when missing."""
        value = self._values.get(key)
        if value is None:
            return None
        found = value.items() if isinstance(value, Array) else [None]
        if not all(isinstance(item, kind) for item in found):
            raise self._wrong(key, f"a list of {kind.__name__}", value)
        return found

    def _asked(
        self, key: str, default: Scalar | None, kinds: tuple[type, ...], wanted: str
    ) -> object:
        value = self._values.get(key, default)
        if value is None:
            raise ModelError(f"{self.file} has no {key}, which must be {wanted}.")
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise self._wrong(key, wanted, value)
        return value

    def _wrong(self, key: str, wanted: str, found: object) -> ModelError:
        shown = f"a list of {found.kind.name}" if isinstance(found, Array) else short(found)
        return ModelError(f"{self.file}: {key} must be {wanted}; found {shown}.")


def read_metadata(cursor: Cursor) -> Metadata:
    """Return all metadata; the cursor stands at their number.

    Raises:
        ModelError: if they cannot be read.
    """
    values: dict[str, Scalar | Array] = {}
    for _ in range(cursor.count("metadata", MOST_KEYS)):
        key = cursor.text("a key")
        if key in values:
            raise damaged(cursor.file, f"{short(key)} is written twice")
        kind = _kind(cursor, key)
        values[key] = _array(cursor, key) if kind is ARRAY else _scalar(cursor, key, kind)
    return Metadata(cursor.file, values)


def _kind(cursor: Cursor, key: str) -> ValueType:
    number = cursor.number("I")
    if number not in VALUE_TYPES:
        raise damaged(cursor.file, f"{short(key)} is of unknown kind {number}")
    return VALUE_TYPES[number]


def _scalar(cursor: Cursor, key: str, kind: ValueType) -> Scalar:
    if kind is STRING:
        return cursor.text(short(key), LONGEST_TEXT)
    value: Scalar = cursor.number(kind.code)
    return _shortest(value) if kind.code == "f" and isinstance(value, float) else value


def _shortest(value: float) -> float:
    """Return the number of fewest digits that is this float32: 1e-05, as the config had it."""
    for digits in range(1, 9):
        rounded = float(f"{value:.{digits}g}")
        if abs(rounded) < _LARGEST and struct.pack("<f", rounded) == struct.pack("<f", value):
            return rounded
    return value


def _array(cursor: Cursor, key: str) -> Array:
    kind, count = _kind(cursor, key), cursor.count(f"items in {short(key)}", MOST_ITEMS)
    if kind is ARRAY:
        raise damaged(cursor.file, f"{short(key)} is a list of lists")
    start = cursor.position
    if kind is STRING:
        cursor.skip_texts(count)
    else:
        cursor.skip(count * struct.calcsize(f"<{kind.code}"))
    return Array(kind, count, cursor.since(start), start)
