"""``--memory`` as a limit: an allocation beyond it fails, so that a broken promise is seen.

On CUDA torch's allocator is capped. On Linux the data limit of the process is lowered: it counts
writable private memory whether it was touched or not, so the room that is left is added to what
is counted already. Elsewhere there is no such limit, and none is set.
"""

from __future__ import annotations

import sys

import torch

from edgetune_torch.memory import anonymous_bytes, status_bytes


class MemoryLimit:
    """A limit on this process's memory on one device, until it is closed."""

    def __init__(self, device: torch.device, nbytes: int | None, runtime: int) -> None:
        """Set the limit; None sets none. ``runtime`` bytes lie outside torch's allocator."""
        self.device = device
        self._before: tuple[int, int] | None = None
        self._capped = False
        if nbytes is None:
            return
        if device.type == "cuda":
            self._cap(max(0, nbytes - runtime))
        elif sys.platform == "linux":
            self._limit(nbytes)

    def close(self) -> None:
        """Take the limit away."""
        if self._before is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, self._before)
        if self._capped:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def _cap(self, nbytes: int) -> None:
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, nbytes / total), self.device)
        self._capped = True

    def _limit(self, nbytes: int) -> None:
        import resource

        counted = status_bytes("VmData:")
        if counted is None:
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = counted + max(0, nbytes - anonymous_bytes())
        limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *limits]), hard))
        self._before = (soft, hard)
