"""One reader a kind of file: bytes to numbered rows."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from itertools import chain
from typing import Any

from edgetune.data.arrow_stream import read_arrow
from edgetune.data.chunks import Faults, ReadingError
from edgetune.data.json_array import read_array, read_objects
from edgetune.data.lines import LINE_LIMIT, read_lines
from edgetune.data.parquet import read_parquet

_DELIMITERS = "\t;,|"

NumberedRows = Iterator[tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class Reader:
    """How one kind of file is read, and what stands between its name and a row's number.

    The rows are values, or, if ``is_json``, the JSON of values, to be parsed where it is cheap.
    """

    kind: str
    rows: Callable[[BufferedReader, Faults], NumberedRows]
    separator: str = ":"
    is_json: bool = False


def _jsonl(stream: BufferedReader, faults: Faults) -> NumberedRows:
    return ((number, text) for number, text in read_lines(stream, faults)
            if text and not text.isspace())  # fmt: skip


def _table(stream: BufferedReader, faults: Faults, *, delimiter: str) -> NumberedRows:
    last = 0
    lines = read_lines(stream, faults)
    first = next((line for line in lines if line[1].strip()), None)

    def texts() -> Iterator[str]:
        nonlocal last
        for number, text in chain([first] if first else [], lines):
            last = number
            yield text + "\n"

    csv.field_size_limit(LINE_LIMIT)
    delimiter = _delimiter(first[1] if first else "", delimiter)
    records = csv.reader(texts(), delimiter=delimiter, strict=True)
    header, number, unnamed = None, first[0] if first else 1, 0
    try:
        for record in records:
            if header is None:
                unnamed = int(
                    len(record) > 1 and not record[0].strip()
                )  # an index, as pandas has it
                header = _header(record[unnamed:], number)
            elif record and len(record) != unnamed + len(header):
                found = f"{len(record)} columns where the header has {unnamed + len(header)}"
                faults.add(number, f"Found {found}. Check quotes and commas.")
            elif record:
                yield number, dict(zip(header, record[unnamed:], strict=True))
            number = last + 1
    except csv.Error as error:
        reason = "a CR is not in quotes" if "new-line" in str(error) else error
        faults.add(number, f"The row that begins here cannot be read: {reason}.")


def _delimiter(header: str, expected: str) -> str:
    """Return what separates the columns of a table: the expected, unless only another is there."""
    if expected in header:
        return expected
    return next((other for other in _DELIMITERS if other in header), expected)


def _header(record: list[str], number: int) -> list[str] | None:
    """Return the names of the columns, None for a blank line before them."""
    names = [name.strip() for name in record]
    if not any(names):
        return None
    if len(set(names)) < len(names) or "" in names:
        raise ReadingError(f"line {number} must name every column once; found {', '.join(names)}.")
    return names


def _text(stream: BufferedReader, faults: Faults) -> NumberedRows:
    """Yield what lies between blank lines, each a document."""
    block: list[str] = []
    first = size = 0
    for number, text in read_lines(stream, faults):
        first = first if block else number
        is_blank = not text or text.isspace()
        if not is_blank:
            block.append(text)
            size += len(text)
        if block and (is_blank or size > LINE_LIMIT):
            yield first, {"text": "\n".join(block)}
            block, size = [], 0
    if block:
        yield first, {"text": "\n".join(block)}


JSON_LINES = Reader("JSON Lines", _jsonl, is_json=True)
JSON_OBJECTS = Reader("JSON objects", read_objects, " row ")
READERS = {
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": Reader("JSON", read_array, " row "),
    ".csv": Reader("CSV", partial(_table, delimiter=",")),
    ".tsv": Reader("TSV", partial(_table, delimiter="\t")),
    ".txt": Reader("text", _text),
    ".parquet": Reader("Parquet", read_parquet, " row "),
    ".arrow": Reader("Arrow", read_arrow, " row "),
}
