"""The names of labels that a data set declares: ``datasets`` writes them beside or into its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from edgetune.data.files import Source
from edgetune.data.unpack import needed
from edgetune.errors import EdgetuneError
from edgetune.files import load_json, parsed_json

_INFO = "dataset_info.json"
_LARGEST = 1 << 24


def declared_names(sources: Sequence[Source], column: str) -> tuple[str, ...]:
    """Return the names of a column's labels, the first for 0; nothing if none are declared."""
    for source in sources:
        for features in _features(source):
            if found := _names(features, column):
                return found
    return ()


def _features(source: Source) -> Iterator[Any]:
    """Yield what is declared of the columns of a file: beside it, then in it."""
    beside = source.path.parent / _INFO
    with suppress(OSError, ValueError):
        yield _member(load_json(beside, _LARGEST), "features")
    with suppress(OSError, ValueError, EdgetuneError):
        yield _member(_member(parsed_json(_schema_note(source)), "info"), "features")


def _member(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else None


def _schema_note(source: Source) -> bytes:
    """Return what ``datasets`` notes in the schema of a Parquet or Arrow file.

    Raises:
        ValueError: if there is none, or the file is of another kind or damaged.
    """
    suffix = source.path.suffix.lower()
    metadata: Mapping[bytes, bytes] | None = None
    if suffix == ".parquet":
        metadata = needed("pyarrow.parquet").read_schema(source.path).metadata
    elif suffix == ".arrow":
        with source.path.open("rb") as stream:
            metadata = needed("pyarrow.ipc").open_stream(stream).schema.metadata
    note = (metadata or {}).get(b"huggingface")
    if note is None:
        raise ValueError("nothing is declared")
    return note


def _names(features: Any, column: str) -> tuple[str, ...]:
    declared = features.get(column) if isinstance(features, dict) else None
    names = declared.get("names") if isinstance(declared, dict) else None
    if isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names):
        return tuple(name.strip() for name in names)
    return ()
