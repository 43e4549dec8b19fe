"""Making the C library give memory back: glibc keeps what is freed unless it is told not to."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

ARENA_MAX = -8
"""``M_ARENA_MAX`` of mallopt(3)."""

ARENAS = 2
"""One for the computation and one for the thread that reads ahead."""


def limit_arenas() -> None:
    """Let threads share arenas: by default each may get one, which keeps what it once held."""
    if (library := _glibc()) is not None:
        library.mallopt(ARENA_MAX, ARENAS)


def trim() -> None:
    """Give free pages back to the system, wherever in the heap they are."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc on Linux."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    try:
        library.gnu_get_libc_version  # noqa: B018  # musl has none
    except AttributeError:
        return None
    return library
