"""``--memory`` as a limit on this process, kept by looking at what it holds between operations.

A limit of the system (``RLIMIT_DATA``) refuses an allocation wherever it happens. Inside native
products nobody expects that: oneDNN, OpenMP and the C++ library answer with SIGSEGV or SIGABRT.
Here nothing is refused. A backend looks before each of its products and raises in its own code,
where a step can be undone; what is taken in between is returned with the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from edgetune.backend import DeviceOutOfMemoryError
from edgetune.device.footprint import anonymous_bytes, exact_anonymous_bytes
from edgetune.units import format_bytes

TOLERANCE: Final = 0.02
"""Fraction of the limit that is not held against a step: counters lag, heaps keep holes."""

LAST_TOLERANCE: Final = 0.10
"""The same where the step cannot be made smaller: to finish a little above the limit, which is
said, serves better than to fail for a plan that was a little too low."""

LEAST_TOLERANCE: Final = 8 * 2**20
"""Bytes that are not held against a step, however low the limit is."""

LOOK_SECONDS: Final = 0.002
"""Seconds between two looks, so that they cost less than one per cent of the time."""

PAUSE_SECONDS: Final = 0.1
"""Seconds until the next look after memory was given back, which takes milliseconds."""


class ProcessLimit:
    """A limit on the memory of this process; None is no limit."""

    def __init__(
        self,
        nbytes: int | None,
        give_back: Callable[[], None],
        *,
        look: Callable[[], int] = anonymous_bytes,
        look_exactly: Callable[[], int] = exact_anonymous_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Hold the process to ``nbytes``; ``give_back`` frees what is kept but not needed."""
        self.nbytes = nbytes
        self._give_back = give_back
        self._look = look
        self._look_exactly = look_exactly
        self._clock = clock
        self._next = clock()

    def check(self, *, divisible: bool) -> None:
        """Look at what the process holds, unless that was done just now.

        ``divisible`` says whether what is computed could be computed in smaller parts.

        Raises:
            DeviceOutOfMemoryError: if it is more than the limit, also after giving back.
        """
        if self.nbytes is None:
            return
        now = self._clock()
        if now < self._next:
            return
        self._next = now + LOOK_SECONDS
        tolerance = self.nbytes * (TOLERANCE if divisible else LAST_TOLERANCE)
        allowed = self.nbytes + max(LEAST_TOLERANCE, tolerance)
        if self._look() <= allowed:
            return
        self._give_back()
        held = self._look_exactly()
        if held > allowed:
            raise DeviceOutOfMemoryError(
                f"{format_bytes(held)} are in use, the limit is {format_bytes(self.nbytes)}"
            )
        self._next = self._clock() + PAUSE_SECONDS
