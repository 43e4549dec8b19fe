"""Files to tokenized examples, every row accepted or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetune.data.encode import Encoder, LossOn, Marked
from edgetune.data.examples import Examples, ExamplesBuilder
from edgetune.data.files import Source, find_sources
from edgetune.data.formats import Format, detect, renamed
from edgetune.data.problems import Problems, RowError, printable
from edgetune.data.receipt import FileRead
from edgetune.data.tokenizer import Tokenizer
from edgetune.errors import DataError

# Tokenized together: enough to keep all cores busy, not enough to fill the memory.
_ROWS_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 1 << 24
_FIELDS_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All rows of all files as examples, and what was learned about the files on the way."""

    examples: Examples
    files: tuple[FileRead, ...]
    format: str
    is_chat: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that was accepted: which line of which file, and what it becomes."""

    file: int
    line: int
    place: str
    marked: Marked


class RowReader:
    """Reads files for one model: the first row decides the format of all of them."""

    def __init__(self, tokenizer: Tokenizer, loss_on: LossOn, fields: Mapping[str, str]) -> None:
        """Prepare to read; ``fields`` maps our field names to the file's."""
        self._tokenizer, self._fields = tokenizer, fields
        self._encoder, self._builder, self._problems = (
            Encoder(tokenizer, loss_on), ExamplesBuilder(), Problems(),
        )  # fmt: skip
        self._format: Format | None = None
        self._is_chat = False
        self._unused: set[str] = set()
        self._altered, self._first_altered = 0, ""

    def read(self, path: Path) -> Reading:
        """Read every row of a file or folder.

        Raises:
            DataError: if there are no rows, or with everything that is wrong with them.
        """
        sources, left_out = find_sources(path)
        counts = [self._read_file(number, source) for number, source in enumerate(sources)]
        self._problems.raise_if_any(f"Problems in {path}")
        if self._format is None:
            raise DataError(f"{path} has no rows in it.")
        return Reading(
            examples=self._builder.build(tuple(source.prefix for source in sources)),
            files=tuple(
                FileRead(name=source.name, rows=rows, sha256=source.sha256())
                for source, rows in zip(sources, counts, strict=True)
            ),
            format=self._format.name,
            is_chat=self._is_chat,
            notes=tuple(self._notes(left_out)),
        )

    def _read_file(self, number: int, source: Source) -> int:
        """Append the rows of one file; return how many there were."""
        before = len(self._builder)
        for block in _blocks(self._rows(number, source)):
            self._append(block)
        return len(self._builder) - before

    def _rows(self, file: int, source: Source) -> Iterator[_Row]:
        for line, value in source.rows(self._problems):
            place = f"{source.prefix}{line}"
            try:
                marked = self._mark(value)
            except RowError as error:
                self._problems.add(place, str(error))
            except RecursionError:
                self._problems.add(place, "The row is nested too deeply.")
            else:
                yield _Row(file, line, place, marked)

    def _mark(self, value: object) -> Marked:
        row = renamed(value, self._fields)
        format_ = self._format or detect(row)
        if not format_.matches(row):
            raise RowError(
                f"This row has the fields of {detect(row).name}, the rows before it those of"
                f" {format_.name}. Put rows of different formats in different files."
            )
        self._format = format_
        if len(self._unused) < _FIELDS_NAMED:
            self._unused |= set(row) - {*format_.needs, *format_.optional}
        content = format_.read(row)
        self._is_chat = self._encoder.is_chat(content)
        return self._encoder.mark(content)

    def _append(self, block: list[_Row]) -> None:
        encoded = self._encoder.encode([row.marked for row in block])
        for row, (tokens, mask) in zip(block, encoded, strict=True):
            if any(mask[1:]):
                self._builder.append(tokens, mask, row.file, row.line)
            else:
                self._problems.add(row.place, "No token of this row can be learned. Remove it.")
            if row.marked.altered:
                self._altered += 1
                self._first_altered = self._first_altered or row.place

    def _notes(self, left_out: list[str]) -> Iterator[str]:
        if self._unused:
            yield printable(f"fields not used: {', '.join(sorted(self._unused))}")
        if left_out:
            yield printable(f"files not read: {', '.join(left_out)}")
        if self._altered:
            yield (
                f"rows of which the template leaves out or changes a part: {self._altered:,},"
                f" the first is {self._first_altered}"
            )
        if self._is_chat and not self._tokenizer.has_template:
            yield "the model has no chat template, so a default stands in; export carries it along"
        if self._is_chat and self._tokenizer.template.writes_dates:
            yield "the template writes today's date; a fixed one stands in, so that runs repeat"


def _blocks(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    block: list[_Row] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row.marked.text)
        if len(block) == _ROWS_AT_ONCE or size > _CHARACTERS_AT_ONCE:
            yield block
            block, size = [], 0
    if block:
        yield block
