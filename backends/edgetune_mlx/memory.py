"""What a session holds of the memory, and the limits that it sets while it is open."""

from __future__ import annotations

from typing import Final

import mlx.core as mx

from edgetune.backend import DeviceOutOfMemoryError, MemoryReading
from edgetune.plan import Plan
from edgetune.units import format_bytes

WAIT_SHARE: Final = 7 / 8
"""Share of the memory from which on MLX waits for what runs."""

LEAST_CACHE: Final = 32 * 2**20
MOST_CACHE: Final = 2**30


class Guard:
    """Keeps MLX within a plan's memory.

    MLX prepares operations ahead of those that run, and waits only while it holds more than its
    memory limit; it never refuses what the system grants, and on unified memory the system then
    swaps. What a step took is therefore held against the plan after each evaluation. Nothing is
    wired: a maximal wired limit is linked to kernel panics on small Macs. Not yet seen on a Mac:
    the limits' effect on Metal's allocator.
    """

    def __init__(self, limit: int, cache: int) -> None:
        """Set MLX's limits, in bytes, until :meth:`close`."""
        self.limit = limit
        self._peak = 0
        mx.reset_peak_memory()
        self._memory_limit = mx.set_memory_limit(int(limit * WAIT_SHARE))
        self._cache_limit = mx.set_cache_limit(cache)

    @classmethod
    def of(cls, plan: Plan) -> Guard:
        """Return the guard of a plan: freed buffers are kept where the plan leaves room."""
        left = plan.device.budget_bytes - plan.memory.peak_bytes
        limit = plan.device.budget_bytes - plan.memory.parts.runtime
        return cls(limit, min(MOST_CACHE, max(LEAST_CACHE, left)))

    def begin(self) -> None:
        """Measure the peak of what comes next by itself."""
        self._peak = max(self._peak, mx.get_peak_memory())
        mx.reset_peak_memory()

    def check(self) -> None:
        """Compare the peak since :meth:`begin` with the limit.

        Raises:
            DeviceOutOfMemoryError: if it was over the limit.
        """
        peak = mx.get_peak_memory()
        if peak > self.limit:
            raise DeviceOutOfMemoryError(
                f"MLX held {format_bytes(peak)}, {format_bytes(self.limit)} are planned"
            )

    def reading(self) -> MemoryReading:
        """Return what MLX holds; the interpreter is not counted."""
        return MemoryReading(
            current_bytes=mx.get_active_memory(),
            peak_bytes=max(self._peak, mx.get_peak_memory()),
            cache_bytes=mx.get_cache_memory(),
            limit_bytes=self.limit,
        )

    def close(self) -> None:
        """Give freed buffers back and restore the limits that were."""
        mx.synchronize()
        mx.clear_cache()
        mx.set_memory_limit(self._memory_limit)
        mx.set_cache_limit(self._cache_limit)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an allocation that failed from other errors; MLX raises a RuntimeError on Metal.

    Not yet seen on a Mac: the texts are those of MLX 0.32's allocator and of its command
    buffers, which may also end the process instead of raising.
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        mark in text for mark in ("[malloc", "[metal::malloc]", "Insufficient Memory")
    )
