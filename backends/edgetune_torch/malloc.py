"""Making the C library give memory back: glibc keeps what is freed unless it is told not to."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

ARENA_MAX = -8
"""``M_ARENA_MAX`` of mallopt(3)."""

ARENAS = 2
"""One for the computation and one for the thread that reads ahead."""

MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of mallopt(3)."""

MAPPED = 1 << 18
"""Bytes from which a tensor gets pages of its own, which go back when it ends. glibc raises its
limit to 32 MB as it goes; the heap then kept 100 to 180 MB of holes in steps of 128 tokens, for
which the steps were no faster (LoRA) to a tenth faster (bottleneck adapters)."""


def limit_heap() -> None:
    """Keep what is freed from staying: few arenas, and nothing large on the heap."""
    if (library := _glibc()) is not None:
        library.mallopt(ARENA_MAX, ARENAS)
        library.mallopt(MMAP_THRESHOLD, MAPPED)


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
