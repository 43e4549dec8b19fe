"""Tokenized rows on disk, so that a large file is tokenized once and never held in memory.

They lie in ``$EDGETUNE_CACHE/tokens``, or in ``~/.cache/edgetune/tokens``: beside the run
folders they would be copied and shared with them, although they can be made again from the
file at any time; in the folder of the file there may be no right to write. One folder an entry
is named by a hash of the files' content, their kinds and everything else that decides the
tokens, wherever the files lie and whatever they are called. It appears whole or not at all, and
is compared with that name and with hashes of its rows when it is opened. All of it may be deleted
at any time, also by another machine: who uses an entry holds its files open, and who writes one
reads it back through its own. One that nobody has used for a month is deleted.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgetune.data.token_store import (
    TokenStore,
    TokenStoreWriter,
    content_digest,
    is_consistent,
    read_token_store,
)
from edgetune.errors import UsageError
from edgetune.files import load_json, sha256_json, unwritable, write_json
from edgetune.owned import own_folder, sweep
from edgetune.settings.parse import checked

FORMAT_VERSION = 5
"""Raised whenever the same file would become other tokens, masks or columns."""

_LIBRARIES = ("tokenizers", "transformers", "Jinja2")
_FACTS = "reading.json"
_LARGEST = 1 << 26
_UNUSED_SECONDS = 30 * 24 * 3600
_ATTEMPTS = 100
_ELSEWHERE = "set EDGETUNE_CACHE to a folder with about three times as much room as the data"


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached reading: its columns, and the facts about the files as plain values."""

    columns: TokenStore
    facts: dict[str, Any]


def cache_folder() -> Path:
    """Return where tokenized files are kept."""
    own = os.environ.get("EDGETUNE_CACHE")
    return Path(own if own else Path.home() / ".cache" / "edgetune").expanduser() / "tokens"


def key_of(*parts: object) -> str:
    """Return the name of an entry for the files and options that ``parts`` describe."""
    return sha256_json([FORMAT_VERSION, [version(name) for name in _LIBRARIES], *parts])


def find(key: str) -> Entry | None:
    """Return an entry, None if there is none or it is not whole."""
    folder = cache_folder() / key
    try:
        facts = checked(dict, load_json(folder / _FACTS, _LARGEST), _FACTS)
        columns = read_token_store(folder)
        own = {"key": key, "rows": len(columns), "content": content_digest(columns)}
    except (OSError, ValueError, UsageError):
        return None
    if any(facts.get(name) != value for name, value in own.items()) or not is_consistent(columns):
        return None
    with suppress(OSError):
        os.utime(folder)
    return Entry(columns, facts)


@contextmanager
def new_entry(key: str) -> Iterator[NewEntry]:
    """Yield an entry to write the columns of; it is kept if it is finished and the block ends.

    Two processes may read the same file: each uses what it wrote, the first one is kept.

    Raises:
        DiskError: if the place cannot be written, with what to do.
    """
    place = cache_folder()
    try:
        with _new_folder(place / key) as (folder, writer):
            try:
                entry = NewEntry(key, folder, writer)
                yield entry
                if entry.finished:
                    with suppress(FileNotFoundError):  # deleted meanwhile, which is allowed
                        _keep(folder, place / key)
            finally:
                writer.close()
    except OSError as error:
        raise unwritable("Tokens", place, error, _ELSEWHERE) from error


@dataclass(slots=True)
class NewEntry:
    """An entry that is being written."""

    key: str
    folder: Path
    writer: TokenStoreWriter
    finished: bool = False

    def finish(self, facts: Mapping[str, Any]) -> Entry:
        """Write the facts, and what tells that they are those of the columns; return both."""
        columns = self.writer.finish()
        own = {"key": self.key, "rows": len(columns), "content": content_digest(columns)}
        with suppress(FileNotFoundError):
            write_json(self.folder / _FACTS, {**facts, **own})
        self.finished = True
        return Entry(columns, {**facts, **own})


@contextmanager
def _new_folder(entry: Path) -> Iterator[tuple[Path, TokenStoreWriter]]:
    """Yield a folder of this process with its files open, made again if it is deleted at once."""
    place = entry.parent
    with ExitStack() as held:
        for attempt in range(_ATTEMPTS):
            try:
                place.mkdir(parents=True, exist_ok=True)
                sweep(place)
                _remove_unused(place)
                folder = held.enter_context(own_folder(entry))
                writer = TokenStoreWriter(folder)
                break
            except FileNotFoundError:
                if attempt + 1 == _ATTEMPTS:
                    raise
        yield folder, writer


def _keep(folder: Path, entry: Path) -> None:
    if find(entry.name) is None:
        shutil.rmtree(entry, ignore_errors=True)
    with suppress(OSError):
        folder.rename(entry)


def _remove_unused(place: Path) -> None:
    for folder in list(place.iterdir()):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
