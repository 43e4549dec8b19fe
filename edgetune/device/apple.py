"""Apple silicon: one memory, of which the graphics processor may hold a part."""

from __future__ import annotations

from typing import Final

from edgetune.device.base import DISK_BANDWIDTH, Device, Fault, Reading, keep_margin
from edgetune.device.cpu import MARGIN_SHARE, host_memory
from edgetune.device.profiles import figures
from edgetune.device.system import System
from edgetune.units import format_bytes, parse_bytes

_LARGE: Final = parse_bytes("36GiB")


def read_apple(system: System) -> Reading:
    """Return the graphics processor of an Apple-silicon Mac."""
    if reason := _not_apple_silicon(system):
        return Reading((), (f"mlx: {reason}",))
    total = system.total_bytes
    chip = _sysctl(system, "machdep.cpu.brand_string") or "Apple silicon"
    limit, limit_because = _working_set(system, total)
    host = host_memory(system)
    known = figures(chip, total)
    device = Device(
        name=chip,
        backend="mlx",
        kind="mlx",
        total_bytes=total,
        free_bytes=min(limit, host.free),
        usable_bytes=min(limit, keep_margin(host.free, total, MARGIN_SHARE)),
        memory_bandwidth=known.memory_bandwidth,
        link_bandwidth=None,
        disk_bandwidth=DISK_BANDWIDTH,
        rate_16bit=known.rate_16bit,
        rate_32bit=known.rate_32bit,
        host_free_bytes=host.usable,
        unified=True,
        here=True,
        notes=(*_notes(host.free, limit), *host.notes),
        because=f"{limit_because}; {known.because}",
        fault=_mlx_fault(system, chip),
    )
    return Reading((device,))


def recommended_working_set(total: int) -> int:
    """Return what macOS recommends that graphics hold: 2/3 of the memory, 3/4 from 36 GiB on.

    Newer systems allow more on large machines; where a backend can ask the system, it must.
    """
    return total * 3 // 4 if total >= _LARGE else total * 2 // 3


def _not_apple_silicon(system: System) -> str | None:
    if system.platform != "darwin":
        return "this is not a Mac with Apple silicon"
    if _number(system, "sysctl.proc_translated"):
        return "this Python runs under Rosetta; install one for arm64"
    return None if system.architecture == "arm64" else "this Mac has an Intel processor"


def _mlx_fault(system: System, chip: str) -> Fault | None:
    if system.has_module("mlx"):
        return None
    return Fault(what=chip, because="mlx is not installed", do="Type: pip install mlx mlx-lm")


def _working_set(system: System, total: int) -> tuple[int, str]:
    wired = _number(system, "iogpu.wired_limit_mb")
    if wired:
        return min(total, wired * 2**20), "working set from iogpu.wired_limit_mb"
    return recommended_working_set(total), "working set as macOS recommends for this memory"


def _notes(free: int, limit: int) -> tuple[str, ...]:
    if free >= limit:
        return ()
    return (f"other programs leave {format_bytes(free)} free: closing some gives a run more",)


def _number(system: System, key: str) -> int:
    text = _sysctl(system, key)
    return int(text) if text.isdecimal() else 0


def _sysctl(system: System, key: str) -> str:
    return (system.run(("/usr/sbin/sysctl", "-n", key)) or "").strip()
