"""Files and folders of a process at work: named as no other names its own, swept when it is gone.

A folder may be shared by machines and containers whose process numbers and names are equal, so
that neither tells whose a file is. The name is drawn at random, and the owner holds a lock on it
for as long as it lives, whatever ends it; where there are no locks, age decides.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from edgetune.files import replacing

LOCK: Final = ".lock"
SCRATCH: Final = "edgetune-scratch"
YOUNG: Final = 60.0
"""Seconds that an owner has to lock what it made."""
OLD: Final = 24 * 3600.0
"""Seconds after which something that cannot be locked is nobody's."""

if sys.platform == "win32":
    import msvcrt

    def lock(file: IO[bytes]) -> None:
        """Lock an open file until it is closed.

        Raises:
            BlockingIOError, PermissionError: if another process holds it.
            OSError: if there are no locks here.
        """
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def lock(file: IO[bytes]) -> None:
        """Lock an open file until it is closed.

        Raises:
            BlockingIOError, PermissionError: if another process holds it.
            OSError: if there are no locks here.
        """
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def own_path(path: Path) -> Path:
    """Return a hidden place beside a path that nobody else uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


@contextmanager
def replacing_shared(path: Path) -> Iterator[Path]:
    """Yield an empty file that takes the place of ``path``, which others may write too.

    Raises:
        OSError: if it cannot be written; nothing of it stays then.
    """
    own = own_path(path)
    with replacing(path, own) as temporary:
        if sys.platform == "win32":  # an open file cannot be renamed there
            yield temporary
            return
        with temporary.open("ab") as held:
            with suppress(OSError):
                lock(held)
            yield temporary


@contextmanager
def own_folder(path: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield a new folder beside ``path``, removed at the end unless it was renamed.

    Raises:
        OSError: if it cannot be made.
    """
    own = own_path(path)
    own.mkdir(mode)
    try:
        with (own / LOCK).open("ab") as held:
            with suppress(OSError):
                lock(held)
            yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


class ScratchFolder:
    """A folder for this process alone, at ``path`` until it is closed, let go of, or swept.

    It lies where the system keeps temporary files, or in a ``parent``.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """Make it, after removing those that processes left that are gone.

        Raises:
            OSError: if it cannot be made.
        """
        parent = parent or Path(tempfile.gettempdir())
        sweep(parent, f".{SCRATCH}.*.partial")
        held = ExitStack()
        self.path = held.enter_context(own_folder(parent / SCRATCH, 0o700))
        self._end = weakref.finalize(self, held.close)

    def __enter__(self) -> Path:
        """Return where it is."""
        return self.path

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self.close()

    def close(self) -> None:
        """Remove it."""
        self._end()


def sweep(folder: Path, pattern: str = ".*.partial") -> None:
    """Delete what owners that are gone left half written in a folder."""
    with suppress(OSError):
        for path in folder.glob(pattern):
            with suppress(OSError):
                if _is_nobodys(path):
                    _remove(path)


def _is_nobodys(path: Path) -> bool:
    age = time.time() - path.stat().st_mtime
    held = path / LOCK if path.is_dir() else path
    if age < YOUNG:
        return False
    try:
        with held.open("rb+") as file:
            lock(file)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return age > OLD
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()
