"""What the C library does with freed memory: keep it for the next tensor, within the plan.

A tensor on fresh pages costs the system a fault for every 4 KB: sums of 300 KB ran at 7 GB/s so,
and at 90 on memory that was used before. What glibc keeps for that is in holes between what lives,
which count as memory of the process like everything else.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from functools import cache

from edgetune.device.footprint import anonymous_bytes

ARENA_MAX = -8
"""``M_ARENA_MAX`` of mallopt(3)."""

ARENAS = 2
"""One for the computation and one for the thread that reads ahead."""

MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of mallopt(3)."""

MAPPED = 1 << 21
"""Bytes from which a tensor gets pages of its own, which go back when it ends, while a model is loaded:
its tensors are of many sizes, and holes between them would be of no use."""

REUSED = 1 << 25
"""The same of a session that is open, whose steps want the same sizes again and again: the most that
glibc takes."""

TRIM_THRESHOLD = -1
"""``M_TRIM_THRESHOLD`` of mallopt(3)."""

TOP = 1 << 28
"""Free bytes at the end of the heap from which glibc gives them back by itself: hardly ever."""

RESERVE = 32 * 2**20
"""Bytes below the expected peak from which on holes are given back, at least."""

GROWTH = 16 * 2**20
"""Bytes by which the process may have grown since, before they are given back again."""

LOOK_SECONDS = 0.001
"""Seconds between two looks at what the process holds."""


def limit_heap() -> None:
    """Have few heaps, nothing large on them, and holes that stay until :func:`trim`."""
    if (library := _glibc()) is not None:
        library.mallopt(ARENA_MAX, ARENAS)
        library.mallopt(MMAP_THRESHOLD, MAPPED)
        library.mallopt(TRIM_THRESHOLD, TOP)


def reuse_freed() -> None:
    """Have tensors of a step on the heap, too, where the next ones find their pages."""
    if (library := _glibc()) is not None:
        library.mallopt(MMAP_THRESHOLD, REUSED)


class Heap:
    """Gives holes back while the process is near the memory that was planned for its peak."""

    def __init__(
        self,
        expected: int,
        *,
        between: int = 0,
        give_back: Callable[[], None] | None = None,
        look: Callable[[], int] = anonymous_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Expect the process to hold at most ``expected`` bytes.

        At most ``between`` bytes are allocated between two checks.
        """
        self._expected = expected
        self._near = self._allowed = expected - max(RESERVE, between)
        self._give_back = give_back or trim
        self._look = look
        self._clock = clock
        self._next = clock()

    def check(self) -> None:
        """Look at what the process holds, unless that was done just now."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + LOOK_SECONDS
        if self._look() > self._allowed:
            self._give_back()
            self._allowed = max(self._near, min(self._look() + GROWTH, self._expected))


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
