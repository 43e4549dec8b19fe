"""Cards that are here and cannot be used: told by the driver, the vendors' numbers and torch's build.

Nothing is imported: torch says in ``torch/version.py`` what it was built for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edgetune.device.base import Fault
from edgetune.device.system import System

NVIDIA, AMD, INTEL = "10de", "1002", "8086"
_VENDORS: Final = {NVIDIA: "NVIDIA", AMD: "AMD", INTEL: "Intel"}
INTEL_GRAPHICS: Final = "Intel graphics"
"""Most processors have some: not worth a word in a plan."""
_CARDS: Final = 8
"""Numbers of graphics devices that are looked at."""

_OLDEST_DRIVER: Final = {
    11: {"linux": (450, 80), "win32": (452, 39)},
    12: {"linux": (525, 60), "win32": (528, 33)},
    13: {"linux": (580, 65), "win32": (580, 65)},
}
"""Drivers from which on a build for a major version of CUDA runs (NVIDIA's release notes)."""
_OLDEST_CAPABILITY: Final = {13: (7, 5)}
"""Compute capabilities that a major version of CUDA still compiles for."""

_BUILT_FOR: Final = re.compile(
    r"^(__version__|cuda|hip)\b[^=\n]*= *(?:'([^']*)'|None)", re.MULTILINE
)
_DRIVER: Final = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+\.\d+(?:\.\d+)?)")
_ASK_DRIVER: Final = (
    "nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader",
)  # fmt: skip

_PLAIN_PIP: Final = "Type: pip uninstall -y torch, then: pip install torch"
_FROM_PYTORCH: Final = "Take the pip line for CUDA from https://pytorch.org/get-started/locally (uninstall torch first)."
"""Where pip's own torch is for processors: Windows."""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What an installed torch was built for."""

    version: str
    cuda: str | None
    hip: str | None


def torch_build(system: System) -> TorchBuild | None:
    """Return what torch was built for; ``None`` if it is not installed or does not say."""
    folder = system.module_folder("torch")
    text = None if folder is None else system.read_text(f"{folder}/version.py")
    found = {match[1]: match[2] for match in _BUILT_FOR.finditer(text or "")}
    if not found.get("__version__"):
        return None
    return TorchBuild(found["__version__"], found.get("cuda"), found.get("hip"))


def torch_fault(system: System, what: str) -> Fault | None:
    """Return why nothing can be computed through torch; ``None`` if it is installed."""
    if system.has_module("torch"):
        return None
    return Fault(what=what, because="torch is not installed", do="Type: pip install torch")


def card_fault(system: System, name: str) -> Fault | None:
    """Return why torch cannot use an NVIDIA card that its driver knows; ``None`` if nothing is seen."""
    if missing := torch_fault(system, name):
        return missing
    build = torch_build(system)
    if build is None:
        return None
    if build.cuda is None:
        for_what = "ROCm" if build.hip else "processors only"
        because = f"this torch ({build.version}) is built for {for_what}"
        return Fault(
            what=name,
            because=because,
            do=_FROM_PYTORCH if system.platform == "win32" else _PLAIN_PIP,
        )
    return _old_fault(system, name, build, build.cuda)


def _old_fault(system: System, name: str, build: TorchBuild, cuda: str) -> Fault | None:
    """Return the fault of a driver or a card that is too old for torch's build."""
    major = int(cuda.partition(".")[0]) if cuda.partition(".")[0].isdecimal() else 0
    driver, capability = _driver_and_capability(system)
    oldest = _OLDEST_DRIVER.get(major, {}).get(system.platform)
    needs = f"torch {build.version} for CUDA {cuda} needs"
    if oldest and driver and _numbers(driver)[:2] < oldest:
        return Fault(
            what=name,
            because=f"its driver {driver} is too old: {needs} {oldest[0]}.{oldest[1]} or later",
            do="Update the NVIDIA driver and restart.",
        )
    least = _OLDEST_CAPABILITY.get(major)
    if least and capability and _numbers(capability) < least:
        because = f"{needs} compute capability {least[0]}.{least[1]}, the card has {capability}"
        return Fault(
            what=name,
            because=because,
            do="Install a torch built for CUDA 12.6: https://pytorch.org/get-started/previous-versions",
        )
    return None


def driver_version(system: System) -> str | None:
    """Return the version of the NVIDIA driver, if it says."""
    return _driver_and_capability(system)[0]


def _driver_and_capability(system: System) -> tuple[str | None, str | None]:
    """Return the driver's version and the least compute capability of the cards, where told."""
    rows = [line.split(",") for line in (system.run(_ASK_DRIVER) or "").splitlines()]
    told = [(row[0].strip(), row[1].strip()) for row in rows if len(row) == 2]
    known = [row for row in told if _numbers(row[0])]
    if known:
        capabilities = [row[1] for row in known if _numbers(row[1])]
        return known[0][0], min(capabilities, key=_numbers, default=None)
    match = _DRIVER.search(system.read_text("/proc/driver/nvidia/version") or "")
    return (match[1] if match else None), None


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def unused_cards(system: System, *, has_driver: bool) -> tuple[Fault, ...]:
    """Return the graphics cards of a Linux machine that no backend computes on, each with why."""
    return tuple(
        _unused(system, vendor)
        for vendor in _vendors(system)
        if not (vendor == NVIDIA and has_driver)
    )


def _unused(system: System, vendor: str) -> Fault:
    name = f"{_VENDORS[vendor]} graphics"
    if vendor == NVIDIA:
        nouveau = re.search(r"^nouveau\b", system.read_text("/proc/modules") or "", re.MULTILINE)
        instead = " (the open nouveau driver is loaded, which has no CUDA)" if nouveau else ""
        return Fault(
            what="NVIDIA card",
            because=f"its driver is not installed or not loaded{instead}",
            do="Install the NVIDIA driver (Ubuntu: sudo ubuntu-drivers install) and restart.",
        )
    build = torch_build(system)
    rocm = " (torch for ROCm changes nothing about that)" if build and build.hip else ""
    wants = "ROCm" if vendor == AMD else "XPU"
    return Fault(
        what=name,
        because=f"edgetune has no backend for {wants} yet{rocm}; runs go to the processor",
        do="Type: edgetune plan --device cpu",
    )


def _vendors(system: System) -> Iterator[str]:
    """Yield the vendors of graphics devices, each once."""
    found = [
        (system.read_text(f"/sys/class/drm/card{number}/device/vendor") or "").strip()
        for number in range(_CARDS)
    ]
    buses = (system.read_text("/proc/bus/pci/devices") or "").splitlines()
    known = {text.removeprefix("0x").lower() for text in found}
    if any(f"\t{NVIDIA}" in line.lower() for line in buses):  # one without a driver has no node
        known.add(NVIDIA)
    yield from (vendor for vendor in _VENDORS if vendor in known)
