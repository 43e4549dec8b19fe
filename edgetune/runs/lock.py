"""One process at a time in a run folder; the system frees the lock when its holder ends."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from edgetune.errors import UsageError
from edgetune.owned import lock


def locked(file: Path) -> IO[bytes]:
    """Return a file that is locked until it is closed.

    Raises:
        UsageError: if another process holds it.
        OSError: if it cannot be opened.
    """
    held = file.open("ab")
    try:
        lock(held)
    except (BlockingIOError, PermissionError):
        held.close()
        raise UsageError(
            f"Another process is at work in {file.parent}. Wait for it or stop it, or choose "
            "another folder with --output."
        ) from None
    except OSError:  # a network disk without locks
        pass
    return held
