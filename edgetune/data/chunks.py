"""Rows on their way from a file to where they are tokenized: some at a time, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

# Enough to be worth sending to another process, not enough to fill the memory when tokenized.
_ROWS = 256
_CHARACTERS = 1 << 18
_FAULTS = 10_000


class ReadingError(ValueError):
    """The file as a whole cannot be read any further."""


@dataclass(slots=True)
class Faults:
    """What could not be read: the row's number, or None for a file as a whole, and why."""

    found: list[tuple[int | None, str]] = field(default_factory=list)

    def add(self, number: int | None, what: str) -> None:
        """Note a fault.

        Raises:
            ReadingError: if there are so many of them that the file is no text at all.
        """
        if number is not None and len(self.found) == _FAULTS:
            raise ReadingError(f"{_FAULTS:,} lines one after another are of no use.")
        self.found.append((number, what))

    def taken(self) -> list[tuple[int | None, str]]:
        """Return what was noted since the last time."""
        found, self.found = self.found, []
        return found


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of the ``file``-th file with their numbers, as values or as the JSON of values."""

    file: int
    is_json: bool
    rows: list[tuple[int, Any]]
    faults: list[tuple[int | None, str]]


def chunks_of(
    file: int, is_json: bool, rows: Iterable[tuple[int, Any]], faults: Faults
) -> Iterator[Chunk]:
    """Yield the rows of a file in blocks, each with the faults that were found on the way."""
    block: list[tuple[int, Any]] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row[1]) if is_json else _characters(row[1])
        if len(block) == _ROWS or size > _CHARACTERS:
            yield Chunk(file, is_json, block, faults.taken())
            block, size = [], 0
    yield Chunk(file, is_json, block, faults.taken())


def _characters(value: object) -> int:
    """Return about how much text is in a value, however deep it is."""
    open_values, size = [value], 0
    while open_values:
        inner = open_values.pop()
        if isinstance(inner, str):
            size += len(inner)
        elif isinstance(inner, (list, tuple)):
            open_values.extend(inner)
        elif isinstance(inner, dict):
            open_values.extend(inner.values())
        else:
            size += 1
    return size
