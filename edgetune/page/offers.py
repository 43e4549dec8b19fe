"""What the form of a new run offers: models and files of rows, of which none has to be typed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgetune.escapes import one_line
from edgetune.files import is_utf8
from edgetune.page.listing import Listed
from edgetune.profile import model_names
from edgetune.units import format_bytes

DEEPEST: Final = 4
"""Folders within folders that are looked through."""
MOST_ENTRIES: Final = 5_000
"""Entries of folders that are looked at; a large folder would hold up the form."""
MOST_OFFERED: Final = 200
ROWS: Final = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".txt", ".md", ".parquet", ".arrow")
"""Endings of files that rows are read from."""
TABLES: Final = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
"""Of them, those that hold rows and hardly anything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a field can be filled with, and a word on what it is."""

    value: str
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """What is offered for the model, for the file of rows, and to continue from."""

    models: tuple[Offer, ...]
    rows: tuple[Offer, ...]
    runs: tuple[Offer, ...]


def offers(folder: Path, runs: Iterable[Listed]) -> Offers:
    """Return the models, runs and files of rows in a folder, and all models known by name.

    Nothing outside of the folder is read: links that lead elsewhere are left out.
    """
    found, runs = list(_found(folder)), list(runs)
    used = [
        Offer(value=run.model, about=f"the model of {one_line(run.name)}")
        for run in runs
        if run.model
    ]
    profiles = [Offer(value=name, about="known by name") for name in model_names()]
    return Offers(
        models=_once([*used, *(one for one, is_model in found if is_model), *profiles]),
        rows=_once(one for one, is_model in found if not is_model),
        runs=_once(
            Offer(value=_called(run.path), about=f"{run.method} over {one_line(run.model_name)}")
            for run in runs
            if run.has_adapter
        ),
    )


def holds_rows(name: str, endings: tuple[str, ...] = ROWS) -> bool:
    """Return whether a file's name is one that rows are in, compressed or not."""
    name = name.lower()
    return any(name.endswith((ending, f"{ending}.gz", f"{ending}.zst")) for ending in endings)


def _once(given: Iterable[Offer]) -> tuple[Offer, ...]:
    """Return the first offer of each value."""
    first: dict[str, Offer] = {}
    for one in given:
        first.setdefault(one.value, one)
    return tuple(first.values())[:MOST_OFFERED]


def _found(folder: Path) -> Iterator[tuple[Offer, bool]]:
    """Yield what lies in a folder, each with whether it is a model, the uppermost first."""
    waiting, left = [(folder, 1)], MOST_ENTRIES
    while waiting and left > 0:
        place, depth = waiting.pop(0)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)[:left]
        except OSError:
            continue
        left -= len(entries)
        names = {entry.name for entry in entries}
        if "plan.yaml" in names:  # a run
            continue
        if "config.json" in names and place != folder:
            if "adapter_config.json" not in names:
                yield Offer(value=_called(place), about="a model's folder"), True
            continue
        for entry in entries:
            if entry.name.startswith(".") or not is_utf8(Path(entry.path)):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < DEEPEST:
                    waiting.append((Path(entry.path), depth + 1))
            elif entry.is_file(follow_symlinks=False):
                yield from _file(entry)


def _file(entry: os.DirEntry[str]) -> Iterator[tuple[Offer, bool]]:
    """Yield a file that is a model, or holds rows."""
    is_model = entry.name.lower().endswith(".gguf")
    if is_model or holds_rows(entry.name, TABLES):
        size = format_bytes(entry.stat(follow_symlinks=False).st_size)
        about = f"a GGUF file, {size}" if is_model else size
        yield Offer(value=_called(Path(entry.path)), about=about), is_model


def _called(path: Path) -> str:
    """Return a path as it is typed: from the working directory on, where it lies in that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
