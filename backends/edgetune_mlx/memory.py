"""What a session holds of the memory, and the limits that it sets while it is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import mlx.core as mx

from edgetune.backend import DeviceOutOfMemoryError, MemoryReading
from edgetune.process_limit import LAST_TOLERANCE, TOLERANCE, ProcessLimit
from edgetune.run_spec import RunSpec
from edgetune.shape import ModelShape
from edgetune.units import format_bytes
from edgetune_mlx.largest_array import largest_array

LEAST_CACHE: Final = 32 * 2**20
MOST_CACHE: Final = 2**30


class Guard:
    """Keeps MLX within a plan's memory.

    MLX prepares operations ahead of those that run, and waits only while it holds more than its
    memory limit. That is what the plan says that training takes, less the largest array that one
    operation may add: what is prepared stays within the plan, and the gradient of the logits,
    which waits for all that reads them, takes their place. MLX never refuses what the system
    grants, and on unified memory the system then swaps. What a step took is therefore held
    against the plan after each evaluation. Nothing is wired: a maximal wired limit is linked to
    kernel panics on small Macs. Not yet seen on a Mac: the limits' effect on Metal's allocator.
    """

    def __init__(self, limit: int, *, waiting: int, cache: int, process: int | None = None) -> None:
        """Set MLX's limits until :meth:`close`; all in bytes.

        Beyond ``waiting`` MLX waits for what runs, beyond ``limit`` a step has failed. So it has
        where the whole process holds more than ``process``, which on a Mac is all of this.
        """
        self.limit = limit
        self._process = ProcessLimit(process, mx.clear_cache)
        self.divisible = False
        """Whether what is computed could be computed in smaller parts."""
        self._peak = 0
        mx.reset_peak_memory()
        self._waiting = min(waiting, limit)
        self._memory_limit = mx.set_memory_limit(self._waiting)
        self._cache_limit = mx.set_cache_limit(cache)

    @classmethod
    def of(cls, spec: RunSpec, shape: ModelShape) -> Guard:
        """Return the guard of a run: freed buffers are kept where the plan leaves room."""
        limits = spec.limits
        left = limits.budget_bytes - limits.peak_bytes
        runtime = limits.runtime_bytes
        return cls(
            limits.budget_bytes - runtime,
            waiting=max(0, limits.training_bytes - runtime - largest_array(spec.choice, shape)),
            cache=min(MOST_CACHE, max(LEAST_CACHE, left)),
            process=limits.limit_bytes,
        )

    @contextmanager
    def made_to_last(self) -> Iterator[None]:
        """Give what is made a place of its own size.

        A freed buffer is given to an array that is up to two pages smaller, for as long as it lives.
        """
        mx.clear_cache()
        limit = mx.set_cache_limit(0)
        try:
            yield
        finally:
            mx.set_cache_limit(limit)

    def begin(self) -> None:
        """Measure the peak of what comes next by itself."""
        self._peak = max(self._peak, mx.get_peak_memory())
        mx.reset_peak_memory()

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Wait for nothing while what is evaluated is evaluated one part after the other.

        Waiting for the last operation keeps a processor busy (MLX 0.32).
        """
        mx.set_memory_limit(self.limit)
        try:
            yield
        finally:
            mx.set_memory_limit(self._waiting)

    def check(self) -> None:
        """Compare the peak since :meth:`begin`, and what the process holds, with the limits.

        Raises:
            DeviceOutOfMemoryError: if it was over one of them.
        """
        peak = mx.get_peak_memory()
        if peak > self.limit * (1 + (TOLERANCE if self.divisible else LAST_TOLERANCE)):
            raise DeviceOutOfMemoryError(
                f"MLX held {format_bytes(peak)}, {format_bytes(self.limit)} are planned"
            )
        self._process.check(divisible=self.divisible)

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
