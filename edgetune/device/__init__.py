"""What the machine is: devices that are here, and devices of profiles.

>>> device = read_device("cpu")
>>> device.kind, device.here, device.usable_bytes <= device.free_bytes
('cpu', True, True)
>>> read_device("rtx-4060-laptop").here
False
"""

from __future__ import annotations

from edgetune.device.base import Device, Reading
from edgetune.device.pressure import read_pressure
from edgetune.device.read import found_again, list_devices, read_device, read_machine

__all__ = [
    "Device",
    "Reading",
    "found_again",
    "list_devices",
    "read_device",
    "read_machine",
    "read_pressure",
]
