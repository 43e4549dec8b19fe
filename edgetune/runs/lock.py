"""One process at a time in a run folder; the system frees the lock when its holder ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetune.errors import UsageError

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a file for as long as the block lasts.

    Raises:
        UsageError: if another process holds it.
    """
    with file.open("ab") as held:
        try:
            _lock(held.fileno())
        except (BlockingIOError, PermissionError):
            raise UsageError(
                f"Another process is at work in {file.parent}. Wait for it or stop it, or choose "
                "another folder with --output."
            ) from None
        except OSError:  # a network disk without locks
            pass
        yield
