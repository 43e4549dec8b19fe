"""Whether the machine is under strain: on battery, or short of memory."""

from __future__ import annotations

from typing import Final

LEAST_SHARE: Final = 0.05
"""Share of the memory that is available below which the system begins to swap."""


def read_strain() -> str | None:
    """Return in words what strains this machine now, None if nothing does."""
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    memory = psutil.virtual_memory()
    # None: the machine does not know whether it is plugged in
    on_battery = battery is not None and battery.power_plugged is False
    return strain(
        percent=battery.percent if battery is not None and on_battery else None,
        available=memory.available,
        total=memory.total,
    )


def strain(*, percent: float | None, available: int, total: int) -> str | None:
    """Return the strain of a machine; ``percent`` is what its battery holds if it feeds on it.

    >>> strain(percent=80, available=4, total=16)
    'on battery (80 %)'
    >>> strain(percent=None, available=0, total=16)
    'short of memory (0 % available)'
    """
    found = [] if percent is None else [f"on battery ({percent:.0f} %)"]
    if available < LEAST_SHARE * total:
        found.append(f"short of memory ({100 * available / total:.0f} % available)")
    return " and ".join(found) or None
