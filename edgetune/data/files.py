"""From a path to rows: which files, unpacked how, read as what.

A line that cannot be read is noted with its number, and reading goes on.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgetune.data.problems import Problems
from edgetune.data.readers import READERS, Reader, ReadingError
from edgetune.data.unpack import PACKED, open_bytes
from edgetune.errors import DataError

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

    def sha256(self) -> str:
        """Return the hash of the file as it lies on disk."""
        digest = hashlib.sha256()
        with self.path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def rows(self, problems: Problems) -> Iterator[tuple[int, object]]:
        """Yield the number and the value of each row; what cannot be read is noted."""
        try:
            with open_bytes(self.path) as stream:
                yield from self.reader.rows(stream, self.prefix, problems)
        except (OSError, EOFError, zlib.error, ReadingError) as error:
            problems.add(self.name, f"The file cannot be read to its end: {error}")


def find_sources(path: Path) -> tuple[list[Source], list[str]]:
    """Return the files at ``path`` (a file or a folder), and the names of those left out.

    Raises:
        DataError: if there are none.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise DataError(f"There is no file {path}. Check the name and the folder.")
    reader = _reader_for(path)
    if reader is None:
        raise DataError(f"{path.name} is not of a known kind. Known: {_KNOWN}.")
    return [Source(path, path.name, reader)], []


def _folder(folder: Path) -> tuple[list[Source], list[str]]:
    found = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*"))
             if file.is_file() and not file.name.startswith(".")}  # fmt: skip
    readers = {name: _reader_for(file) for name, file in found.items()}
    sources = [Source(found[name], name, reader) for name, reader in readers.items() if reader]
    if not sources:
        raise DataError(f"The folder {folder} has no file of a known kind. Known: {_KNOWN}.")
    return sources, [name for name, reader in readers.items() if reader is None]


def _reader_for(path: Path) -> Reader | None:
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return READERS.get(Path(name).suffix)
