"""Disks that are full or broken, without one."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def full_disk(nbytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: a write then fails as on a full disk.

    The error is EFBIG instead of ENOSPC; what is written before it is in the file.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class FailingDisk:
    """Makes one of the operations fail that change a disk, counted from 1; 0 makes none fail.

    Hooks cannot be removed again: there is one for the whole process.
    """

    OPERATIONS = ("os.rename", "os.mkdir", "os.symlink", "os.truncate")

    def __init__(self) -> None:
        """Watch this process."""
        self.left = 0
        self.failed = ""
        self.error = errno.ENOSPC
        sys.addaudithook(self._count)

    def fail(self, number: int, error: int) -> None:
        """Let the ``number``-th operation from now on fail with an error."""
        self.left, self.failed, self.error = number, "", error

    def _count(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and bool(int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR))
        if self.left and (writes or event in self.OPERATIONS):
            self.left -= 1
            if not self.left:
                self.failed = event
                raise OSError(self.error, os.strerror(self.error))


@cache
def failing_disk() -> FailingDisk:
    """Return the one of this process."""
    return FailingDisk()
