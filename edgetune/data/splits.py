"""Which rows are trained and which are for validation: by file where files say so, else by hash.

A folder with ``train.jsonl`` and ``valid.jsonl`` has said so, and so has ``--validation-data``.
A file that is named for tests is not trained while there are others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from edgetune.data.files import Source, find_sources
from edgetune.data.read import Reading
from edgetune.data.row_digests import Hashes, held_out, seeded
from edgetune.errors import DataError

_WORD = re.compile("[a-z]+")
_SAID = {
    "test": {"test"},
    "validation": {"valid", "validation", "val", "dev", "eval"},
    "train": {"train", "training"},
}
_NAMED = 10
Splits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Found:
    """Files to read, the last ``validation`` of them for validation, and what to say of them."""

    sources: list[Source]
    validation: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers to train on and to validate with, and those left out as they are in both."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    repeated: NDArray[np.int64]


def find_splits(data: Path, validation_data: Path | None, *, by_name: bool = True) -> Found:
    """Return the files of both sides, those of a folder ``by_name`` or all to train on.

    Raises:
        DataError: if there are none to train on.
    """
    sources, left = find_sources(data)
    given, more_left = find_sources(validation_data) if validation_data is not None else ([], [])
    taken = {source.path.resolve() for source in given}
    sources = [source for source in sources if source.path.resolve() not in taken]
    validation: list[Source] = []
    left += more_left
    notes = [f"files not read: {_names(left)}"] if left else []
    if sources and data.is_dir() and by_name:
        sources, validation, said = _by_name(sources)
        notes += said
    validation += given
    if not sources:
        raise DataError(f"All of {data} is for validation, and there is none to train on.")
    if validation:
        names = _names([source.name for source in validation])
        notes.append(f"validation rows are those of {names}; no others are held back")
    return Found([*sources, *validation], len(validation), tuple(notes))


def split(reading: Reading, found: Found, share: float, seed: int) -> Split:
    """Return which rows go to which side; the same row is never on both."""
    if not found.validation:
        held = held_out(seeded(reading.digests, seed), share)
        return Split(np.flatnonzero(~held), np.flatnonzero(held), np.zeros(0, np.int64))
    first = int(reading.examples.locations.bounds[-1 - found.validation])
    repeated = first + np.flatnonzero(_occurs_in(reading.digests[first:], reading.digests[:first]))
    validation = np.setdiff1d(np.arange(first, len(reading.digests)), repeated)
    return Split(np.arange(first), validation, repeated)


def _occurs_in(some: Hashes, others: Hashes) -> Splits:
    return np.isin(some, others)


def _by_name(sources: Sequence[Source]) -> tuple[list[Source], list[Source], list[str]]:
    """Sort the files of a folder by what their names say: to train on, for validation, notes."""
    files: dict[str, list[Source]] = {"train": [], "validation": [], "test": []}
    for source in sources:
        files[_said(source)].append(source)
    train, validation, tests = files.values()
    if not (train or validation):
        return tests, [], ["all files are named for tests, and they are trained"]
    names = _names([source.name for source in tests])
    return train, validation, [f"files not read, as they are for tests: {names}"] if tests else []


def _said(source: Source) -> str:
    """Return what a file is for by the words of its name, or else of the folders it is in."""
    for part in reversed(PurePosixPath(source.name).parts):
        words = set(_WORD.findall(part.lower()))
        for side, known in _SAID.items():
            if words & known:
                return side
    return "train"


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
