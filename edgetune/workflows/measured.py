"""What is known of this machine's speed, and finding it out once, before the first run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from edgetune.device import Device, read_device
from edgetune.errors import CheckFailedError, UsageError
from edgetune.settings.spec import Decision
from edgetune.speed import Measurements, load_measurements, versions_of
from edgetune.speed.measured import load_failure, save_failure

MOST_SECONDS: Final = 120.0
"""After which a measurement is given up: plans then go by published rates."""


def measured(device: Device) -> Measurements | None:
    """Return what was measured of a device of this machine, if that was done."""
    return load_measurements(device.name, versions_of(device.backend)) if device.here else None


def refuse_elsewhere(name: str) -> None:
    """Refuse to measure a machine that is not this one.

    Raises:
        UsageError: if the device called ``name`` is a profile.
    """
    if not read_device(name).here:
        raise UsageError(
            f"--measure times this machine, and --device {name} is another machine's profile. "
            "Leave one out."
        )


def measured_once(name: str, say: Callable[[str], None] = lambda _: None) -> Measurements | None:
    """Return what was measured of the device called ``name``, measuring it first if need be.

    None for a device that is not here or cannot be used, and where measuring fails: plans then
    go by published rates, which they say. It is not tried again before each run.
    """
    device = read_device(name)
    if (known := measured(device)) is not None or not device.here:
        return known
    if not _usable(device).value:
        return None
    versions = versions_of(device.backend)
    if (failure := load_failure(device.name, versions)) is None:
        say("Measuring this machine once, which takes some seconds")
        try:
            return measure_apart(device, name)
        except CheckFailedError as error:
            failure = str(error)
        with suppress(OSError):
            save_failure(device.name, versions, failure)
    say(
        f"{failure}. Times are estimated from published rates; `edgetune devices --measure` tries "
        "again"
    )
    return None


def measure_apart(device: Device, name: str) -> Measurements:
    """Measure a device in a process of its own: what it loads and allocates does not stay.

    ``name`` is what ``--device`` calls it.

    Raises:
        UsageError: if it is not here or its backend cannot be used.
        CheckFailedError: if measuring fails or takes longer than two minutes.
    """
    usable = _usable(device)
    if not usable.value:
        raise UsageError(f"{device.name} cannot be measured: {usable.because.removesuffix('.')}.")
    command = [sys.executable, "-m", "edgetune.workflows.measuring", name]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=MOST_SECONDS, check=True
        )
        return Measurements.of(json.loads(done.stdout))
    except (OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
        raise CheckFailedError(f"{device.name} could not be measured: {_reason(error)}") from error


def _usable(device: Device) -> Decision[bool]:
    from edgetune.backend import load_backend

    if not device.here:
        return Decision(value=False, because="it is a profile, not a device of this machine")
    return load_backend(device.backend).usable(device.identity)


def _reason(error: Exception) -> str:
    """Return what a process that failed said last, if it said anything."""
    lines = str(getattr(error, "stderr", None) or "").strip().splitlines()
    return lines[-1] if lines else str(error)
