"""Disks that are full, without one: a process may only write files up to a size."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


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
