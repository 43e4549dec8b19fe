"""Writing that either happens whole or not at all, and survives a power cut."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner can read
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block succeeds.

    What a process that was killed left behind at the same place is removed first.

    Raises:
        OSError: if it cannot be written, or ``path`` is there and not an empty folder.
    """
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
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


def write_json(path: Path, value: Any) -> None:
    """Write an object as readable JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


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
