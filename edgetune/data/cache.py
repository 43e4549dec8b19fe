"""Tokenized rows on disk, so that a large file is tokenized once and never held in memory.

They lie in ``$EDGETUNE_CACHE/tokens``, or in ``~/.cache/edgetune/tokens``: beside the run
folders they would be copied and shared with them, although they can be made again from the
file at any time; in the folder of the file there may be no right to write. One folder an entry
is named by a hash of the files' content, their kinds and everything else that decides the
tokens, wherever the files lie and whatever they are called. It appears whole or not at all. All
of it may be deleted at any time; an entry that nobody has used for a month is.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgetune.data.token_store import DTYPES, TokenStore, read_token_store
from edgetune.errors import DataError
from edgetune.files import sha256_json, whole_folder, write_json

FORMAT_VERSION = 3
"""Raised whenever the same file would become other tokens, masks or columns."""

_LIBRARIES = ("tokenizers", "transformers", "Jinja2")
_FACTS = "reading.json"
_UNUSED_SECONDS = 30 * 24 * 3600


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
        facts = json.loads((folder / _FACTS).read_text("utf-8"))
        if any((folder / name).stat().st_size != facts["bytes"][name] for name in DTYPES):
            return None
        columns = read_token_store(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):
        os.utime(folder)
    return Entry(columns, facts)


@contextmanager
def new_entry(key: str) -> Iterator[Path]:
    """Yield a folder to write the columns into; it becomes an entry by :func:`complete`.

    Raises:
        DataError: if the place cannot be written, with what to do.
    """
    place = cache_folder()
    # Two processes may read the same file; the first to finish is kept.
    own = place / f"{key}-{os.getpid()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        _remove_unused(place)
        with whole_folder(own) as folder:
            yield folder
        if find(key) is None:
            shutil.rmtree(place / key, ignore_errors=True)
        with suppress(OSError):
            own.rename(place / key)
    except OSError as error:
        raise DataError(
            f"The tokens cannot be kept in {place}: {error}. Set EDGETUNE_CACHE to a folder with"
            " about three times as much room as the data."
        ) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def complete(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts of an entry, and the sizes by which it is known to be whole."""
    sizes = {name: (folder / name).stat().st_size for name in DTYPES}
    write_json(folder / _FACTS, {**facts, "bytes": sizes})


def _remove_unused(place: Path) -> None:
    for folder in place.iterdir():
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
