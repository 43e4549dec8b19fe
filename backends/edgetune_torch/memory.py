"""What a session holds of the device's memory.

On CUDA the allocator knows. On CPU it is the anonymous memory of the process
(:mod:`edgetune.device.footprint`), of which the system keeps no peak: a thread looks every 10 ms.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread
from weakref import ref

import torch

from edgetune.backend import MemoryReading
from edgetune.device.footprint import anonymous_bytes

INTERVAL = 0.01
"""Seconds between two looks."""


class MemoryWatch:
    """Watches the memory of one device from opening to closing, or until nobody holds it."""

    def __init__(self, device: torch.device, limit: int) -> None:
        """Begin to watch; ``limit`` is in bytes and only passed on."""
        self.device = device
        self.limit = limit
        self._peak = 0
        self._stop = Event()
        self._thread: Thread | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._thread = Thread(
                target=_watch, args=(ref(self), self._stop), name="edgetune-memory", daemon=True
            )
            self._thread.start()

    def read(self) -> MemoryReading:
        """Return current, peak and cached bytes."""
        if self.device.type == "cuda":
            allocated = torch.cuda.memory_allocated(self.device)
            return MemoryReading(
                current_bytes=allocated,
                peak_bytes=torch.cuda.max_memory_reserved(self.device),
                cache_bytes=torch.cuda.memory_reserved(self.device) - allocated,
                limit_bytes=self.limit,
            )
        current = anonymous_bytes()
        self._peak = max(self._peak, current)
        return MemoryReading(
            current_bytes=current, peak_bytes=self._peak, cache_bytes=0, limit_bytes=self.limit
        )

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Note the memory of this moment."""
        self._peak = max(self._peak, anonymous_bytes())


def _watch(held: ref[MemoryWatch], stop: Event) -> None:
    """Look again and again; the thread must not keep alive what it watches for."""
    while not stop.wait(INTERVAL) and (watch := held()) is not None:
        with suppress(MemoryError):  # when there is none left, the next look counts
            watch.look()
        del watch
