"""What is known of this machine's speed, and finding it out once, before the first run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from edgetune.device import Device, read_device
from edgetune.speed import Measurements, load_measurements, versions_of

MOST_SECONDS: Final = 120.0
"""After which a measurement is given up: plans then go by published rates."""


def measured(device: Device) -> Measurements | None:
    """Return what was measured of a device of this machine, if that was done."""
    return load_measurements(device.name, versions_of(device.backend)) if device.here else None


def measured_once(name: str, say: Callable[[str], None] = lambda _: None) -> Measurements | None:
    """Return what was measured of the device called ``name``, measuring it first if need be.

    None for a device that is not here or cannot be used, and where measuring fails: plans then
    go by published rates, which they say.
    """
    device = read_device(name)
    if (known := measured(device)) is not None or not device.here:
        return known
    from edgetune.backend import load_backend

    if not load_backend(device.backend).usable().value:
        return None
    say("Measuring this machine once, which takes some seconds")
    with suppress(OSError, ValueError, TypeError, subprocess.SubprocessError):
        return measure_apart(name)
    say("It could not be measured; times are estimated from published rates")
    return None


def measure_apart(name: str) -> Measurements:
    """Measure a device in a process of its own: what it loads and allocates does not stay.

    Raises:
        subprocess.SubprocessError: if it fails or takes longer than two minutes.
    """
    command = [sys.executable, "-m", "edgetune.workflows.measuring", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=True)
    return Measurements(**json.loads(done.stdout))
