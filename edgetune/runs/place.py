"""Whether a folder is still where it was, though its path may lead to another one by now."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HeldFolder:
    """A folder held open; ``descriptor`` stays the folder's, wherever it goes."""

    path: Path
    descriptor: int

    def is_there(self) -> bool:
        """Return whether its path still leads to it."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self.descriptor))
        except OSError:
            return False

    def place(self) -> Path | None:
        """Return where the folder is now, None if it was deleted or cannot be found."""
        try:
            found = Path(_path_of(self.descriptor))
            same = os.path.samestat(found.stat(), os.fstat(self.descriptor))
        except OSError:
            return None
        return found if same else None


@contextmanager
def held(path: Path) -> Iterator[HeldFolder | None]:
    """Hold a folder open; None on Windows, where one in use cannot be deleted or moved.

    Raises:
        OSError: if there is none.
    """
    if os.name == "nt":
        yield None
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield HeldFolder(path, descriptor)
    finally:
        os.close(descriptor)


def _path_of(descriptor: int) -> str:
    if sys.platform == "darwin":
        import fcntl

        found = fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024))
        return os.fsdecode(found.rstrip(b"\0"))
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())
