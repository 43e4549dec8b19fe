"""Writing that either happens whole or not at all, and survives a power cut."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from edgetune.errors import DiskError

_REMEDIES: Final = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room within the quota",
    errno.EFBIG: "Allow larger files (ulimit -f)",
    errno.EROFS: "Make the disk writable",
    errno.EACCES: "Make the folder writable",
    errno.EIO: "Check the disk",
}
"""What to do about a file that cannot be written."""


@contextmanager
def replacing(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """Yield an empty file that takes the place of ``path`` when the block succeeds.

    ``partial`` is the file that is yielded, where several processes may write ``path`` at once.

    Raises:
        OSError: if it cannot be written; nothing of it stays then.
    """
    partial = partial or partial_path(path)
    try:
        partial.write_bytes(b"")
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):  # of a disk that fails, the first error is told
            partial.unlink(missing_ok=True)


def not_new(path: Path) -> str | None:
    """Return why no new folder can be made at ``path``; None if nothing or an empty one is there.

    Raises:
        OSError: if it cannot be looked at.
    """
    here = Path.cwd()
    if not is_utf8(path):
        return "its name is not UTF-8"
    if path.is_symlink() and not path.exists():
        return f"it is a link to {path.readlink()}, where nothing is"
    if path.resolve() in (here, *here.parents):
        return "it is the folder that you are in, or one above it"
    if not path.exists():
        return None
    if not path.is_dir():
        return "it is there and is not a folder"
    if any(path.iterdir()):
        return "it is not empty"
    return "a disk is mounted on it" if path.is_mount() else None


def is_utf8(path: Path) -> bool:
    """Return whether a path can be written down as text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block succeeds.

    What a process that was killed left behind at the same place is removed first. The folder
    that it lies in must be there: it may have been deleted on purpose.

    Raises:
        OSError: if it cannot be written, or ``path`` is there and not an empty folder.
    """
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for inner in sorted(partial.rglob("*"), reverse=True):
            sync(inner)
        sync(partial)
        if path.exists() and os.name == "nt":  # Windows renames onto nothing, not even emptiness
            path.rmdir()
        partial.replace(path)
        sync(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unwritable(what: str, folder: Path, error: OSError, elsewhere: str) -> DiskError:
    """Return the error for something that must be written to a folder and cannot be.

    ``elsewhere`` says how another place is chosen, as a clause.

    Raises:
        MemoryError: if it is no matter of the disk.
    """
    if error.errno == errno.ENOMEM:
        raise MemoryError(error.strerror)
    reason, remedy = error.strerror or error, _REMEDIES.get(error.errno or 0, "Mend that")
    return DiskError(f"{what} cannot be written to {folder}: {reason}. {remedy}, or {elsewhere}.")


def disk_failed(error: OSError) -> DiskError | None:
    """Return what an error of the system says about a disk, None if it says nothing of one."""
    if error.errno not in _REMEDIES or error.errno == errno.EACCES:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return DiskError(
        f"A file cannot be written: {where}{error.strerror}. {_REMEDIES[error.errno]}."
    )


def partial_path(path: Path) -> Path:
    """Return where a file or folder is built: hidden, on the same disk."""
    return path.with_name(f".{path.name}.partial")


def sync(path: Path) -> None:
    """Make a file or folder reach the disk, where the system lets folders be synced."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> str:
    """Write an object as readable JSON, whole or not at all; return its SHA-256."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> str:
    """Write a text as UTF-8, whole or not at all; return the SHA-256 of its bytes."""
    data = text.encode()
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load_json(path: Path, largest: int) -> Any:
    """Return the value of a JSON file of at most ``largest`` bytes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no file, too large, too deep, or not JSON.
    """
    return parsed_json(read_bounded(path, largest))


def read_bounded(path: Path, largest: int) -> bytes:
    """Return the content of a regular file of at most ``largest`` bytes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is something else (a pipe, a device), or larger.
    """
    if not path.is_file() and path.exists():
        raise ValueError(f"{path} is not a regular file")
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"{path} is larger than {largest} bytes")
    return data


def parsed_json(data: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: if it is not JSON, has numbers that are none, or is too deep.
    """
    try:
        return _STRICT.decode(data.decode())
    except RecursionError:
        raise ValueError("it is too deep") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


_STRICT: Final = json.JSONDecoder(parse_constant=_no_number)
"""Made once: a log has a hundred thousand lines."""


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
