"""How fast a disk is read, past the operating system's memory of it."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Final

_PIECE: Final = 1 << 22
_SIZE: Final = 1 << 28


def read_bandwidth(folder: Path | None = None, size: int = _SIZE) -> float:
    """Return bytes/s of reading a file in order; ``folder`` is on the disk, temporary if None.

    Where the system cannot be told to forget the file, the figure is that of its memory.
    """
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        piece = os.urandom(_PIECE)
        for _ in range(0, size, _PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return size / _read(Path(file.name))


def _read(path: Path) -> float:
    """Return the seconds that it takes to read a file."""
    buffer = bytearray(_PIECE)
    begun = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - begun
