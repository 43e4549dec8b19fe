"""The one seam to the machine: whatever this package learns, it learns through a ``System``.

A recorded machine is a ``System`` too (see ``recorded.py``), so pitfalls are replayed in tests.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgetune.device.base import BackendName

if TYPE_CHECKING:
    import ctypes

_SECONDS_FOR_A_COMMAND: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What can be asked of a machine; an answer that is not there is ``None`` (0 for a clock)."""

    platform: str
    """As in ``sys.platform``."""
    architecture: str
    """As in ``platform.machine()``."""
    kernel: str
    """The release of the kernel."""
    environment: Mapping[str, str]
    total_bytes: int
    available_bytes: int
    cores: int
    """Physical cores that this process may run on."""
    clock: float
    """Highest clock of a core in Hz."""
    ceilings: Mapping[str, int]
    """Limits that the process was started with, in bytes: ``RLIMIT_AS``, ``RLIMIT_DATA``."""
    read_text: Callable[[str], str | None]
    run: Callable[[Sequence[str]], str | None]
    """The standard output of a command; ``None`` if it is missing, fails or hangs."""
    load_library: Callable[[str], ctypes.CDLL | None]
    module_folder: Callable[[str], str | None]
    """The folder of an installed package that is not imported; ``None`` if there is none."""

    @property
    def backend(self) -> BackendName:
        """The backend that computes on machines of this kind."""
        return "mlx" if (self.platform, self.architecture) == ("darwin", "arm64") else "torch"

    def has_module(self, name: str) -> bool:
        """Return whether a package is installed."""
        return self.module_folder(name) is not None


def this_system() -> System:
    """Return the machine that this process runs on."""
    import psutil

    memory = psutil.virtual_memory()
    return System(
        platform=sys.platform,
        architecture=platform.machine(),
        kernel=platform.release(),
        environment=os.environ,
        total_bytes=memory.total,
        available_bytes=memory.available,
        cores=_cores(),
        clock=_clock(),
        ceilings=_ceilings(),
        read_text=_read_text,
        run=_run,
        load_library=_load_library,
        module_folder=_module_folder,
    )


def _cores() -> int:
    import psutil

    allowed = os.cpu_count() or 1
    if sys.platform == "linux":
        allowed = len(os.sched_getaffinity(0))
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def _clock() -> float:
    import psutil

    try:
        frequency = psutil.cpu_freq()
    # psutil fails in its own ways where a virtual machine or a new chip hides the clock.
    except (OSError, RuntimeError, NotImplementedError, AttributeError):
        return 0.0
    return max(frequency.max, frequency.current) * 1e6 if frequency else 0.0


def _ceilings() -> dict[str, int]:
    if sys.platform == "win32":
        return {}
    import resource

    soft = {
        "RLIMIT_AS": resource.getrlimit(resource.RLIMIT_AS)[0],
        "RLIMIT_DATA": resource.getrlimit(resource.RLIMIT_DATA)[0],
    }
    return {name: limit for name, limit in soft.items() if limit != resource.RLIM_INFINITY}


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_SECONDS_FOR_A_COMMAND
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _module_folder(name: str) -> str | None:
    spec = find_spec(name)
    if spec is None:
        return None
    return (
        str(Path(spec.origin).parent)
        if spec.origin
        else next(iter(spec.submodule_search_locations or ()), "")
    )


def _load_library(name: str) -> ctypes.CDLL | None:
    import ctypes

    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
