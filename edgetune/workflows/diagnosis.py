"""What this machine has for fine-tuning, what is missing, and what to type: the doctor's findings."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from edgetune.backend import load_backend
from edgetune.device import Device, read_device, read_machine
from edgetune.device.base import PACKAGES, Fault
from edgetune.device.system import this_system
from edgetune.model.hub import cache_folder
from edgetune.settings.spec import Decision
from edgetune.version import __version__

_SHARED: Final = ("transformers", "tokenizers", "numpy")
"""Packages beside those of a backend."""
_EXTRAS: Final = {
    "pyarrow": "Parquet files of examples",
    "zstandard": "compressed files of examples (.zst)",
    "xllamacpp": "checking GGUF files in llama.cpp",
}
"""Packages that are only needed for something, and what for."""
_ROOM: Final = 20 * 10**9
"""Bytes of a disk below which a word is said: a model of 8 B parameters takes 16 GB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A device, and whether it was seen to compute."""

    device: Device
    usable: bool
    because: str
    do: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that the doctor found."""

    edgetune: str
    python: str
    system: str
    devices: tuple[Checked, ...]
    faults: tuple[Fault, ...]
    """Cards that no backend computes on."""
    absent: tuple[str, ...]
    packages: dict[str, str | None]
    missing_extras: dict[str, str]
    """Packages that are only needed for something and are not installed: what for."""
    models: int
    cache: str
    free_bytes: int

    @property
    def usable(self) -> bool:
        """Whether anything here can train."""
        return any(checked.usable for checked in self.devices)

    @property
    def short_of_room(self) -> bool:
        """Whether a larger model would hardly fit the disk."""
        return self.free_bytes < _ROOM


def diagnose(device: str = "auto") -> Diagnosis:
    """Look at this machine: devices are tried, nothing is changed.

    ``device`` limits the look to one device of this machine.

    Raises:
        UsageError: if a named device is not here.
    """
    machine = read_machine()
    devices = machine.devices if device == "auto" else (read_device(device),)
    return Diagnosis(
        edgetune=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        devices=tuple(_checked(found) for found in devices),
        faults=machine.faults if device == "auto" else (),
        absent=machine.absent if device == "auto" else (),
        packages={name: _version(name) for name in _packages()},
        missing_extras={
            package: what for package, what in _EXTRAS.items() if _version(package) is None
        },
        models=_models(),
        cache=str(cache_folder()),
        free_bytes=shutil.disk_usage(_existing(cache_folder())).free,
    )


def _checked(device: Device) -> Checked:
    """Try a device, unless it is known why that fails."""
    if device.fault is not None:
        return Checked(
            device=device, usable=False, because=device.fault.because, do=device.fault.do
        )
    found = _tried(device)
    because, _, do = found.because.partition(". ")
    return Checked(device=device, usable=found.value, because=because, do=do)


def _tried(device: Device) -> Decision[bool]:
    return load_backend(device.backend).usable(device.identity)


def _packages() -> tuple[str, ...]:
    """Return what a machine like this one needs."""
    return (*PACKAGES[this_system().backend], *_SHARED)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _models() -> int:
    return sum(1 for _ in cache_folder().glob("models--*/snapshots/*/config.json"))


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
