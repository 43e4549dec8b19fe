"""Whether the machine is under pressure: on battery, or short of memory."""

from __future__ import annotations

from typing import Final

LEAST_SHARE: Final = 0.05
"""Share of the memory that is available below which the system begins to swap."""


def read_pressure() -> str | None:
    """Return in words what puts this machine under pressure now, None if nothing does."""
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    memory = psutil.virtual_memory()
    # None: the machine does not know whether it is plugged in
    on_battery = battery is not None and battery.power_plugged is False
    return pressure(
        percent=battery.percent if battery is not None and on_battery else None,
        available=memory.available,
        total=memory.total,
    )


def pressure(*, percent: float | None, available: int, total: int) -> str | None:
    """Return the pressure that a machine is under; ``percent`` is what its battery holds if it feeds on it.

    >>> pressure(percent=80, available=4, total=16)
    'on battery (80 %)'
    >>> pressure(percent=None, available=0, total=16)
    'short of memory (0 % available)'
    """
    found = [] if percent is None else [f"on battery ({percent:.0f} %)"]
    if available < LEAST_SHARE * total:
        found.append(f"short of memory ({100 * available / total:.0f} % available)")
    return " and ".join(found) or None
