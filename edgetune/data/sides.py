"""Which rows are trained and which are for validation: by file where files say so, else by hash.

A folder with ``train.jsonl`` and ``valid.jsonl`` has said so, and so has ``--validation-data``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetune.data.files import Source, find_sources
from edgetune.data.read import Reading
from edgetune.data.split import Hashes, held_out, seeded
from edgetune.errors import DataError

_VALIDATION = re.compile(r"(valid|validation|val|dev|eval)([-_.\d]|$)", re.IGNORECASE)
_TEST = re.compile(r"test([-_.\d]|$)", re.IGNORECASE)
Sides = NDArray[np.bool_]


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


def find_sides(data: Path, validation_data: Path | None) -> Found:
    """Return the files of both sides.

    Raises:
        DataError: if there are none to train on.
    """
    sources, ignored = find_sources(data)
    notes = [f"files not read: {', '.join(ignored)}"] if ignored else []
    validation: list[Source] = []
    if data.is_dir():
        sources, validation, said = _by_name(sources)
        notes += said
    if validation_data is not None:
        given, ignored = find_sources(validation_data)
        notes += [f"files not read: {', '.join(ignored)}"] if ignored else []
        validation += given
    if not sources:
        raise DataError(f"{data} has files for validation and none to train on.")
    if validation:
        names = ", ".join(source.name for source in validation)
        notes.append(f"validation rows are those of {names}; no others are held back")
    return Found([*sources, *validation], len(validation), tuple(notes))


def split(reading: Reading, found: Found, share: float, seed: int) -> Split:
    """Return which rows go to which side; the same row is never on both."""
    if not found.validation:
        held = held_out(seeded(reading.digests, seed), share)
        return Split(np.flatnonzero(~held), np.flatnonzero(held), np.zeros(0, np.int64))
    first = int(reading.examples.places.bounds[-1 - found.validation])
    repeated = first + np.flatnonzero(_occurs_in(reading.digests[first:], reading.digests[:first]))
    validation = np.setdiff1d(np.arange(first, len(reading.digests)), repeated)
    return Split(np.arange(first), validation, repeated)


def _occurs_in(some: Hashes, others: Hashes) -> Sides:
    return np.isin(some, others)


def _by_name(sources: Sequence[Source]) -> tuple[list[Source], list[Source], list[str]]:
    """Sort the files of a folder by what their names say; all are to train on if none does."""
    validation = [s for s in sources if _VALIDATION.match(s.path.name)]
    if not validation:
        return list(sources), [], []
    tests = [s for s in sources if _TEST.match(s.path.name)]
    rest = [s for s in sources if s not in validation and s not in tests]
    names = ", ".join(source.name for source in tests)
    return rest, validation, [f"files not read, as they are for tests: {names}"] if tests else []
