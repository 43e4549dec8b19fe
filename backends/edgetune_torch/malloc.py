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
from typing import Any, cast

from edgetune.device.footprint import anonymous_bytes

ARENA_MAX = -8
"""``M_ARENA_MAX`` of mallopt(3)."""

ARENAS = 1
"""Of a second one, which other threads would get, the free end is never given back."""

MMAP_THRESHOLD = -3
"""``M_MMAP_THRESHOLD`` of mallopt(3)."""

MAPPED = 1 << 21
"""Bytes from which a tensor gets pages of its own, which go back when it ends: from there on they
can be large pages, 2 MB at a fault."""

TRIM_THRESHOLD = -1
"""``M_TRIM_THRESHOLD`` of mallopt(3)."""

TOP = 1 << 28
"""Free bytes at the end of the heap from which glibc gives them back by itself: hardly ever."""

RESERVE = 32 * 2**20
"""Bytes below the expected peak from which on holes are given back, at least."""

HOLES = 16 * 2**20
"""Bytes of holes, beyond those that were given back already, which may be there all the same."""

LOOK_SECONDS = 0.001
"""Seconds between two looks at what the process holds."""


def limit_heap() -> None:
    """Have one heap, nothing large on it, and holes that stay until :func:`trim`."""
    if (library := _glibc()) is not None:
        library.mallopt(ARENA_MAX, ARENAS)
        library.mallopt(MMAP_THRESHOLD, MAPPED)
        library.mallopt(TRIM_THRESHOLD, TOP)


class Heap:
    """Gives holes back while the process is near the memory that was planned for its peak.

    Bytes that are free and were given back count as free still, until something lies on them: of
    the least that was free since, no hole is known.
    """

    def __init__(
        self,
        expected: int,
        *,
        between: int = 0,
        give_back: Callable[[], None] | None = None,
        look: Callable[[], int] = anonymous_bytes,
        free: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Expect the process to hold at most ``expected`` bytes.

        At most ``between`` bytes are allocated between two checks.
        """
        self._near = expected - max(RESERVE, between)
        self._given_back = 0
        self._give_back = give_back or trim
        self._look = look
        self._free = free or free_bytes
        self._clock = clock
        self._next = clock()

    def check(self) -> None:
        """Look at what the process holds, unless that was done just now."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + LOOK_SECONDS
        if self._look() <= self._near:
            self._given_back = 0
            return
        free = self._free()
        self._given_back = min(self._given_back, free)
        if free > self._given_back + HOLES:
            self._give_back()
            self._given_back = self._free()


def trim() -> None:
    """Give free pages back to the system, wherever in the heap they are."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


FIELDS = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
    "keepcost",
)  # fmt: skip
"""Of ``struct mallinfo2`` of mallinfo(3)."""


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


class _ShortMallinfo(ctypes.Structure):
    """What glibc before 2.33 has alone: what is over 4 GiB is lost."""

    _fields_ = [(name, ctypes.c_uint) for name in FIELDS]


def free_bytes() -> int:
    """Return the bytes of the heap on which nothing lies, given back or not; 0 without glibc."""
    return int(found().fordblks) if (found := _mallinfo()) is not None else 0


@cache
def _mallinfo() -> Callable[[], Any] | None:
    library = _glibc()
    if library is None:
        return None
    try:
        found = library.mallinfo2
        found.restype = _Mallinfo
    except AttributeError:
        found = library.mallinfo
        found.restype = _ShortMallinfo
    return cast("Callable[[], Any]", found)


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
