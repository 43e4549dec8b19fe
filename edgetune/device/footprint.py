"""What this process holds of the machine's memory, as its system counts it.

The honest figure is *anonymous* memory: what the process wrote and what nobody can take back,
swapped pages included. Resident memory counts mapped libraries and files as well, which the
system drops when it needs room. On macOS the same is called the physical footprint.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Final

_FOOTPRINT: Final = 16 + 7 * 8
"""Offset of ``ri_phys_footprint`` in macOS's ``struct rusage_info_v0``, which has 96 bytes."""


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process; a look takes about ten microseconds.

    Linux counts in batches for each processor, so the figure can lag behind by some megabytes.
    """
    found = _linux("/proc/self/status", b"RssAnon:", b"VmSwap:")
    return found if found is not None else _elsewhere()


def exact_anonymous_bytes() -> int:
    """Return the same as the page tables have it, which takes longer the more there is."""
    found = _linux("/proc/self/smaps_rollup", b"Anonymous:", b"Swap:")
    return found if found is not None else anonymous_bytes()


def _linux(file: str, *fields: bytes) -> int | None:
    """Return the sum of some fields in kB of a file of ``/proc``; None where there are none."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        text = os.read(descriptor, 1 << 14)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    lines = [line.split() for line in text.splitlines() if line.startswith(fields)]
    return 1024 * sum(int(line[1]) for line in lines) if lines else None


def _elsewhere() -> int:
    footprint = _mac_footprint()
    if footprint is not None:
        return footprint
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "private", info.rss))


def _mac_footprint() -> int | None:
    library = _mac_library()
    if library is None:
        return None
    usage = ctypes.create_string_buffer(512)
    if library.proc_pid_rusage(os.getpid(), 0, usage):
        return None
    return int.from_bytes(usage.raw[_FOOTPRINT : _FOOTPRINT + 8], sys.byteorder)


@cache
def _mac_library() -> ctypes.CDLL | None:
    if sys.platform != "darwin":
        return None
    return ctypes.CDLL(None)
