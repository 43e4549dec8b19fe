"""An output folder that is whole or not there: built beside its place, flushed, renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgetune.errors import DiskError, UsageError
from edgetune.files import is_utf8, not_new, replacing, unwritable, whole_folder
from edgetune.units import format_bytes

ELSEWHERE: Final = "choose another place with --output"
_ENTRY: Final = 512
"""More than a tensor's name and place take in a header and an index."""
_CONFIG: Final = 2**16
"""More than the configs take."""


@contextmanager
def new_folder(target: Path, needed: int) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the block succeeds.

    ``needed`` is the number of bytes that the block will write. What an export that was killed
    left behind at the same place is removed first.

    Raises:
        UsageError: if the target is there already.
        DiskError: if it cannot be written, or does not fit the disk.
    """
    target = _free_place(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(target) as partial:
            _check_space(target, needed)
            yield partial
    except OSError as error:
        raise unwritable("The export", target, error, ELSEWHERE) from error


@contextmanager
def new_file(target: Path, needed: int) -> Iterator[Path]:
    """Yield where a file is written that becomes ``target`` when the block succeeds.

    Raises:
        UsageError: if something is there already.
        DiskError: if it cannot be written, or does not fit the disk.
    """
    target = target.expanduser()
    if target.is_symlink() or target.exists() or not is_utf8(target):
        raise UsageError(
            f"No file {target} can be made: something exists there, or its name is not UTF-8. Nothing "
            "is overwritten: choose another name with --output."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            _check_space(target, needed)
            yield partial
    except OSError as error:
        raise unwritable("The export", target.parent, error, ELSEWHERE) from error


def needed_bytes(tensors: Iterable[int], files: Iterable[int] = ()) -> int:
    """Return the bytes that tensors and copied files of these sizes take, headers included."""
    return sum(_ENTRY + size for size in tensors) + sum(files) + _CONFIG


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _free_place(target: Path) -> Path:
    """Return the place that a target stands for, after checking that nothing is there."""
    try:
        target = target.expanduser()
        because, place = not_new(target), target.resolve()
    except OSError as error:
        raise unwritable("The export", target, error, ELSEWHERE) from error
    except RuntimeError as error:  # links in a circle, no such user
        raise UsageError(f"{target} is no place: {error}. Choose another with --output.") from error
    if because:
        raise UsageError(
            f"No folder {target} can be made: {because}. Nothing is overwritten: choose another "
            "place with --output."
        )
    return place


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DiskError(
            f"The export to {target} needs {format_bytes(needed)} ({needed} bytes), and "
            f"{format_bytes(free)} ({free} bytes) are free there. Free some, or choose another "
            "disk with --output."
        )
