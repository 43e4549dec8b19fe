"""From a path to rows: which files, unpacked how, read as what.

A line that cannot be read is noted with its number, and reading goes on.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from edgetune.data.chunks import Chunk, Faults, ReadingError, chunks_of
from edgetune.data.lines import UTF8_MARK
from edgetune.data.readers import JSON_LINES, JSON_OBJECTS, READERS, Reader
from edgetune.data.unpack import PACKED, unpacked
from edgetune.errors import DataError
from edgetune.escapes import one_line, short

_BLOCK = 1 << 16
_OPENED = re.compile(
    rb"\{[^\r\n}]*[\[{,]?[ \t]*[\r\n]"
)  # an object that its first line does not close
_DESCRIBING = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_KNOWN = f"{', '.join(READERS)}, also with {' or '.join(PACKED)} after it"


@dataclass(frozen=True, slots=True)
class Source:
    """A file: where it lies, what messages call it, and how it is read."""

    path: Path
    name: str
    reader: Reader

    @property
    def prefix(self) -> str:
        """What comes before a row's number when it is named (``chats.jsonl:``)."""
        return f"{self.name}{self.reader.separator}"

    @property
    def kind(self) -> tuple[str, str]:
        """What the bytes are read as, and how they are packed (``""`` if not at all)."""
        suffix = self.path.suffix.lower()
        return self.reader.kind, suffix if suffix in PACKED else ""

    def size(self) -> int:
        """Return the bytes of the file as it lies on disk."""
        return self.path.stat().st_size

    def blocks(self, file: int, position: Callable[[int], None]) -> Iterator[Chunk]:
        """Yield the rows as the ``file``-th file; ``position`` is told how far reading has come."""
        faults = Faults()
        with self.path.open("rb") as stream:
            for block in chunks_of(file, self.reader.is_json, self._rows(stream, faults), faults):
                position(stream.tell())
                yield block

    def _rows(self, stream: BufferedReader, faults: Faults) -> Iterator[tuple[int, Any]]:
        try:
            yield from self.reader.rows(unpacked(self.name, stream), faults)
        except DataError as error:
            faults.add(None, str(error))
        except (OSError, EOFError, zlib.error, ReadingError) as error:
            faults.add(None, f"The file cannot be read to its end: {error}")


def find_sources(path: Path) -> tuple[list[Source], list[str]]:
    """Return the files at ``path`` (a file or a folder), and the names of those left out.

    In a folder those are hidden files and folders, links to folders, what is no regular file,
    what ``datasets`` writes about the data, and files of no known kind.

    Raises:
        DataError: if there are none, or ``path`` is neither.
    """
    try:
        is_folder, is_there, is_file = path.is_dir(), path.exists(), path.is_file()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{short(str(path))} cannot be looked at: {reason}.") from error
    if is_folder:
        return _folder(path)
    if not is_there:
        raise DataError(f"There is no file {path}. Check the name and the folder.")
    if not is_file:
        raise DataError(f"{path} is a pipe, a socket or a device. Save the rows in a file.")
    reader = _reader_for(path)
    if reader is None:
        raise DataError(f"{path.name} is not of a known kind. Known: {_KNOWN}.")
    return [Source(path, one_line(path.name), reader)], []


def _folder(folder: Path) -> tuple[list[Source], list[str]]:
    sources, left = [], []
    for path in sorted(_within(folder)):
        name = one_line(path.relative_to(folder).as_posix())
        is_open = path.is_file() and not path.name.startswith(".") and not _describes(path.name)
        reader = _reader_for(path) if is_open else None
        if reader is None:
            left.append(f"{name}/" if path.is_dir() else name)
        else:
            sources.append(Source(path, name, reader))
    if not sources:
        raise DataError(f"The folder {folder} has no file of a known kind. Known: {_KNOWN}.")
    return sources, left


def _describes(name: str) -> bool:
    """Whether a file is about the others, or an intermediate result, as ``datasets`` writes them."""
    return name in _DESCRIBING or (name.startswith("cache-") and name.endswith(".arrow"))


def _within(folder: Path) -> Iterator[Path]:
    """Yield all that is not a folder, and folders that are hidden or links instead of their files.

    Raises:
        DataError: if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.")

    for place, folders, files in os.walk(folder, onerror=refuse):
        here = Path(place)
        closed = {name for name in folders if name.startswith(".") or (here / name).is_symlink()}
        folders[:] = [name for name in folders if name not in closed]
        yield from (here / name for name in (*closed, *files))


def _reader_for(path: Path) -> Reader | None:
    """Return how a file is read, None if it is of no known kind.

    Raises:
        DataError: if it is Parquet that was packed once more.
    """
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    kind = Path(name).suffix
    if kind in (".parquet", ".arrow") and name != path.name.lower():
        raise DataError(
            f"{path.name} is packed {kind[1:].title()}, which cannot be read packed. Unpack it."
        )
    return _json_reader(path) if kind == ".json" else READERS.get(kind)


def _json_reader(path: Path) -> Reader:
    """Return how a JSON file is read: as a list, as lines, or as objects over several lines."""
    try:
        with path.open("rb") as stream:
            content = unpacked(path.name, stream)
            start = content.read(_BLOCK).removeprefix(UTF8_MARK).lstrip()
            while not start and (block := content.read(_BLOCK)):
                start = block.lstrip()
    except (OSError, EOFError, zlib.error, DataError):
        return READERS[".json"]
    if start.startswith(b"["):
        return READERS[".json"]
    return JSON_OBJECTS if _OPENED.match(start) else JSON_LINES
