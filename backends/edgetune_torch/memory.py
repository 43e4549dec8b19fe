"""What a session holds of the device's memory."""

from __future__ import annotations

import psutil
import torch

from edgetune.backend import MemoryReading


def read_memory(device: torch.device, limit: int) -> MemoryReading:
    """Return current, peak and cached bytes: the allocator's on CUDA, resident ones on CPU."""
    if device.type == "cuda":
        return MemoryReading(
            current_bytes=torch.cuda.memory_allocated(device),
            peak_bytes=torch.cuda.max_memory_reserved(device),
            cache_bytes=torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device),
            limit_bytes=limit,
        )
    current = psutil.Process().memory_info().rss
    return MemoryReading(
        current_bytes=current, peak_bytes=_peak_resident(current), cache_bytes=0, limit_bytes=limit
    )


def _peak_resident(current: int) -> int:
    try:
        import resource
    except ImportError:  # Windows
        return int(getattr(psutil.Process().memory_info(), "peak_wset", current))
    return max(current, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
