"""What every part of this package speaks of: a device, and what was read of a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from edgetune.units import parse_bytes

BackendName = Literal["torch", "mlx"]
DeviceKind = Literal["cuda", "cpu", "mlx"]

PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "torch": ("torch", "bitsandbytes"),
    "mlx": ("mlx",),
}
"""What a backend computes with, by the names of distributions."""

BFLOAT16_FROM: Final = (8, 0)
"""The least compute capability of cards that multiply bfloat16."""

CARD: Final = "cuda"
"""The kind of devices that are cards, which do not share a processor or its memory."""

WITHOUT_CARD: Final[Mapping[str, DeviceKind]] = {"torch": "cpu", "mlx": "mlx"}
"""The kind of device that a backend computes on where there is no card."""

DISK_BANDWIDTH: Final = 5e8
"""Bytes/s of a SATA solid-state disk: what any machine of today reaches or exceeds."""

_LEAST_MARGIN: Final = parse_bytes("256MiB")
_MOST_MARGIN: Final = parse_bytes("2GiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why something that is here cannot be used, and the line to type."""

    what: str
    because: str
    do: str

    def __str__(self) -> str:
        """Return it as a sentence or two."""
        return f"{self.what} cannot be used: {self.because}. {self.do}"


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """By what a backend finds a device: its kind, and of a card the driver's own name for it."""

    kind: DeviceKind
    uuid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device that a run can be planned for. A bandwidth or rate of 0 means not known."""

    name: str
    backend: BackendName
    kind: DeviceKind
    total_bytes: int
    free_bytes: int
    usable_bytes: int
    """What a run may use: the least of all limits, less a margin for everything else that runs."""
    memory_bandwidth: float
    """Bytes/s between the device and its own memory."""
    link_bandwidth: float | None
    """Bytes/s from host to device; ``None`` where they share one memory."""
    disk_bandwidth: float
    """Bytes/s of sequential reads."""
    rate_16bit: float
    """Peak FLOP/s of dense 16-bit matrix products summed in float32."""
    rate_32bit: float
    """Peak FLOP/s of float32 matrix products."""
    multiplies_16bit: bool = True
    """False: a processor, on which 16-bit numbers are widened to multiply them."""
    host_free_bytes: int
    """Host memory that streamed weights and offloaded checkpoints may use."""
    unified: bool
    """Whether the device works in the host's memory."""
    here: bool
    """False for a profile: a machine that is not this one."""
    notes: tuple[str, ...] = ()
    """Pitfalls that were seen, in words for the user."""
    because: str
    """Where the numbers come from."""
    uuid: str | None = None
    """The driver's identity of a card: frameworks may number the cards in another order."""
    compute_capability: tuple[int, int] | None = None
    """What an NVIDIA card can do, as its vendor numbers it; ``None`` where it is not known."""
    kernels: bool = False
    """Whether the backend's own kernels compute on it."""
    fault: Fault | None = None
    """Why a run cannot use it as things are; ``None`` where nothing speaks against it."""
    passed_over: tuple[Fault, ...] = ()
    """Why better devices of this machine were not taken, where they would have been."""

    @property
    def identity(self) -> DeviceIdentity:
        """By what its backend finds it."""
        return DeviceIdentity(self.kind, self.uuid)

    @property
    def has_bfloat16(self) -> bool:
        """Whether it computes in bfloat16: not cards before Ampere, which widen it at every step."""
        if self.kind != CARD:
            return True
        if self.compute_capability is not None:
            return self.compute_capability >= BFLOAT16_FROM
        return not 0 < self.rate_16bit <= self.rate_32bit


def card_name(number: int) -> str:
    """Return what a card is called among several."""
    return f"{CARD}:{number}"


@dataclass(frozen=True, slots=True)
class Reading:
    """The devices that were found, why kinds of them were not, and cards that nothing computes on."""

    devices: tuple[Device, ...]
    absent: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    def __add__(self, other: Reading) -> Reading:
        return Reading(
            self.devices + other.devices, self.absent + other.absent, self.faults + other.faults
        )


def keep_margin(free: int, total: int, share: float) -> int:
    """Return what a run may use of ``free`` bytes when a share of ``total`` is left to others.

    The margin is at least 256 MiB and at most 2 GiB: large machines do not run larger desktops.
    """
    margin = min(_MOST_MARGIN, max(_LEAST_MARGIN, int(total * share)))
    return max(0, free - margin)
