"""Devices as published: a profile by name, for a machine that is not here or a card that is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgetune.device.base import Device
from edgetune.device.card import as_capability, has_kernels
from edgetune.profile import names, read_yaml

_SIZE: Final = re.compile(r"-(\d+)gb$")

_NOISE: Final = frozenset(
    {"nvidia", "geforce", "tesla", "gpu", "apple", "pcie", "sxm4"}
    | {"engineering", "reference", "developer", "kit"}
)
"""Words of a device's full name that its profile's name leaves out."""

_HOST_BYTES: Final = 8 * 2**30
"""Streamed weights may use this much of the host of a card's profile: half of 16 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is published about a device and cannot be read from it; 0 is not known."""

    memory_bandwidth: float = 0.0
    rate_16bit: float = 0.0
    rate_32bit: float = 0.0
    compute_capability: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    because: str = "published figures unknown: no profile has this name"


def profile_device(name: str) -> Device:
    """Return the device of a profile.

    Raises:
        UsageError: if there is no such profile; the nearest names are given.
    """
    return _device(name, read_yaml("devices", name))


def figures(name: str, total_bytes: int) -> Figures:
    """Return the published figures of a device here by its own name; zeros if there are none.

    Where a name comes with several memory sizes the nearest one is taken; the memory itself is
    always read, never taken from a profile.
    """
    stem = _slug(name)
    fitting = [known for known in names("devices") if stem in {known, _stem(known)}]
    if not fitting:
        return Figures()
    nearest = min(fitting, key=lambda known: abs(_size(known) - total_bytes))
    device = profile_device(nearest)
    return Figures(
        memory_bandwidth=device.memory_bandwidth,
        rate_16bit=device.rate_16bit,
        rate_32bit=device.rate_32bit,
        compute_capability=device.compute_capability,
        notes=device.notes,
        because=f"published figures from the profile {nearest}",
    )


def _slug(name: str) -> str:
    words = re.split(r"[\s_-]+", name.lower())
    return "-".join(word for word in words if word and word not in _NOISE)


def _stem(name: str) -> str:
    return _SIZE.sub("", name)


def _size(name: str) -> int:
    match = _SIZE.search(name)
    return int(match.group(1)) * 2**30 if match else 0


def _device(name: str, content: Mapping[str, Any]) -> Device:
    usable = int(content["total_bytes"] * content["usable_share"])
    unified = content["unified"]
    told = content.get("compute_capability")
    capability = None if told is None else as_capability(told)
    return Device(
        name=content["name"],
        backend=content["backend"],
        kind=content["kind"],
        total_bytes=content["total_bytes"],
        free_bytes=usable,
        usable_bytes=usable,
        memory_bandwidth=content["memory_bandwidth"],
        link_bandwidth=content["link_bandwidth"],
        disk_bandwidth=content["disk_bandwidth"],
        rate_16bit=content["rate_16bit"],
        rate_32bit=content["rate_32bit"],
        multiplies_16bit=content.get("multiplies_16bit", True),
        compute_capability=capability,
        kernels=capability is not None and has_kernels(capability),
        host_free_bytes=usable if unified else _HOST_BYTES,
        unified=unified,
        here=False,
        notes=tuple(content.get("notes", ())),
        because=f"profile {name.lower()}: {' '.join(content['source'].split())}",
    )
