"""One process at a time in a run folder; the system frees the lock when its holder ends.

The file says which process that is, so that another one can find and signal it. A process is its
number and when it began: numbers come again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from edgetune.errors import UsageError
from edgetune.owned import lock

LOCK: Final = ".lock"
_LONGEST: Final = 64
"""Bytes of what the file says."""
_CLOCK_SECONDS: Final = 2.0
"""How far the beginning of one process may seem to move when the clock is set right."""


def locked(file: Path) -> IO[bytes]:
    """Return a file that is locked until it is closed, and says that this process holds it.

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
    _sign(held, f"{os.getpid()} {began(os.getpid())}\n")
    return held


def release(held: IO[bytes]) -> None:
    """Say that nobody is at work here any more, and unlock the file."""
    with held:
        _sign(held, "")


def holder(folder: Path) -> int | None:
    """Return the number of the process that is at work in a run folder; None if there is none."""
    try:
        with (folder / LOCK).open("rb") as file:
            number, beginning = file.read(_LONGEST).split()
            if is_there(int(number), float(beginning)) and _is_held(file):
                return int(number)
    except (OSError, ValueError, OverflowError):
        pass
    return None


def began(number: int) -> float:
    """Return when a process began, in seconds since 1970; 0 if there is none."""
    import psutil

    try:
        process = psutil.Process(number)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return 0.0


def is_there(number: int, beginning: float) -> bool:
    """Return whether the process of this number that began then is still there."""
    found = began(number)
    return found > 0 and abs(found - beginning) < _CLOCK_SECONDS


def _is_held(file: IO[bytes]) -> bool:
    """Return whether a lock is held, as that of a folder that was copied is not."""
    try:
        lock(file)
    except OSError:  # held, or on a network disk without locks
        return True
    return False


def _sign(held: IO[bytes], text: str) -> None:
    with suppress(OSError):  # of a full disk the training itself tells
        held.truncate(0)
        held.write(text.encode())
        held.flush()
