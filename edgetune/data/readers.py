"""One reader a kind of file: bytes to numbered rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from edgetune.data.lines import LINE_LIMIT, Line, read_lines
from edgetune.data.problems import Problems
from edgetune.data.unpack import needed

JSON_LIMIT = 1 << 30
NumberedRows = Iterator[tuple[int, object]]


class ReadingError(ValueError):
    """The file as a whole cannot be read any further."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How one kind of file is read, and what stands between its name and a row's number."""

    rows: Callable[[BufferedReader, str, Problems], NumberedRows]
    separator: str = ":"


def _jsonl(stream: BufferedReader, prefix: str, problems: Problems) -> NumberedRows:
    for line in read_lines(stream, prefix, problems):
        if line.text.strip():
            try:
                yield line.number, json.loads(line.text)
            except (ValueError, RecursionError) as error:
                problems.add(f"{prefix}{line.number}", f"This is not JSON: {_json_reason(error)}.")


def _json(stream: BufferedReader, prefix: str, problems: Problems) -> NumberedRows:
    start = stream.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"["):  # JSON Lines under another name is common
        yield from _jsonl(stream, prefix.removesuffix(" row ") + ":", problems)
        return
    content = stream.read(JSON_LIMIT + 1)
    if len(content) > JSON_LIMIT:
        raise ReadingError("it is over 1 GiB. Write it as .jsonl, one row a line.")
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ReadingError(f"it is not JSON: {_json_reason(error)}.") from error
    yield from enumerate(values, 1)


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}".replace(
            "at line 1, ", "at "
        )
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _table(
    stream: BufferedReader, prefix: str, problems: Problems, *, delimiter: str
) -> NumberedRows:
    last = Line(0, "")

    def texts() -> Iterator[str]:
        nonlocal last
        for last in read_lines(stream, prefix, problems):
            yield last.text + "\n"

    csv.field_size_limit(LINE_LIMIT)
    records = csv.reader(texts(), delimiter=delimiter, strict=True)
    header, number = None, 1
    try:
        for record in records:
            if header is None:
                header = _header(record, prefix)
            elif record and len(record) != len(header):
                found = f"{len(record)} columns where the header has {len(header)}"
                problems.add(f"{prefix}{number}", f"Found {found}. Check quotes and commas.")
            elif record:
                yield number, dict(zip(header, record, strict=True))
            number = last.number + 1
    except csv.Error as error:
        problems.add(f"{prefix}{number}", f"The row that begins here cannot be read: {error}.")


def _header(record: list[str], prefix: str) -> list[str]:
    names = [name.strip() for name in record]
    if len(set(names)) < len(names) or "" in names:
        raise ReadingError(f"{prefix}1 must name every column once; found {', '.join(names)}.")
    return names


def _text(stream: BufferedReader, prefix: str, problems: Problems) -> NumberedRows:
    """Yield what lies between blank lines, each a document."""
    block: list[str] = []
    first = size = 0
    for line in read_lines(stream, prefix, problems):
        first = first if block else line.number
        if line.text.strip():
            block.append(line.text)
            size += len(line.text)
        if block and (not line.text.strip() or size > LINE_LIMIT):
            yield first, {"text": "\n".join(block)}
            block, size = [], 0
    if block:
        yield first, {"text": "\n".join(block)}


def _parquet(stream: BufferedReader, prefix: str, problems: Problems) -> NumberedRows:  # noqa: ARG001
    parquet: Any = needed("pyarrow.parquet", Path(prefix.removesuffix(" row ")))
    arrow: Any = needed("pyarrow", Path(prefix))
    number = 0
    try:
        for batch in parquet.ParquetFile(stream).iter_batches(batch_size=1024):
            for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                yield number, row
    except arrow.ArrowException as error:
        raise ReadingError(f"it is not whole after row {number}: {error}") from error


READERS = {
    ".jsonl": Reader(_jsonl),
    ".ndjson": Reader(_jsonl),
    ".json": Reader(_json, " row "),
    ".csv": Reader(partial(_table, delimiter=",")),
    ".tsv": Reader(partial(_table, delimiter="\t")),
    ".txt": Reader(_text),
    ".parquet": Reader(_parquet, " row "),
}
