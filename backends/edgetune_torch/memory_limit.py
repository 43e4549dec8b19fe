"""``--memory`` as a limit: what goes beyond it raises, and the step is taken in smaller parts.

On CUDA torch's allocator is capped: an allocation beyond the cap raises. On a processor the
process is watched (:mod:`edgetune.process_limit`), as an allocation that fails inside a native
product would end it.
"""

from __future__ import annotations

import torch

from edgetune.process_limit import ProcessLimit
from edgetune_torch.malloc import trim


class MemoryLimit:
    """A limit on this process's memory on one device, until it is closed."""

    def __init__(self, device: torch.device, nbytes: int | None, runtime: int) -> None:
        """Set the limit; None sets none. ``runtime`` bytes lie outside torch's allocator."""
        self.device = device
        self._capped = device.type == "cuda" and nbytes is not None
        self._process = ProcessLimit(None if device.type == "cuda" else nbytes, trim)
        if self._capped and nbytes is not None:
            self._cap(max(0, nbytes - runtime))

    def check(self, divisible: bool) -> None:
        """Hold this moment against the limit, where it is watched.

        ``divisible`` says whether what is computed could be computed in smaller parts.

        Raises:
            DeviceOutOfMemoryError: if the process holds more.
        """
        self._process.check(divisible=divisible)

    def close(self) -> None:
        """Take the limit away."""
        if self._capped:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def _cap(self, nbytes: int) -> None:
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), self.device)
