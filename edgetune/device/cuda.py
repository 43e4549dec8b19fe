"""NVIDIA cards as devices; a card that cannot be used is absent with its reason."""

from __future__ import annotations

from typing import Final

from edgetune.device.base import DISK_BANDWIDTH, Device, Reading, keep_margin
from edgetune.device.card import Card, link_bandwidth, visible
from edgetune.device.cpu import HostMemory, host_memory
from edgetune.device.faults import card_fault
from edgetune.device.kernels import kernel_absence, kernel_notes
from edgetune.device.nvml import nvml_cards
from edgetune.device.profiles import figures
from edgetune.device.smi import smi_cards
from edgetune.device.system import System
from edgetune.units import format_bytes

_CARD_SHARE: Final = 0.02
"""Share of a card that is left to the desktop, on top of what it holds already."""

_MUCH: Final = 0.05
"""The driver itself holds a few percent of a card; more than this is worth a note."""

_SPILLS: Final = (
    "Windows spills to host memory instead of failing: a run that outgrows the card gets slow"
)


def read_cuda(system: System) -> Reading:
    """Return the NVIDIA cards that this process may use, in the order asked for or on the bus."""
    if board := _tegra_board(system):
        return Reading((_integrated(system, board),))
    cards = nvml_cards(system)
    if isinstance(cards, str):
        cards = smi_cards(system) or cards
    if isinstance(cards, str):
        return Reading((), (f"cuda: {cards}",))
    chosen = visible(cards, system.environment)
    hidden = len(cards) - len(chosen)
    absent = (f"cuda: CUDA_VISIBLE_DEVICES hides {hidden} of {len(cards)} cards",) if hidden else ()
    host = host_memory(system)
    notes = (*_order_notes(system, cards), *_platform_notes(system))
    return Reading(tuple(_device(card, system, host, notes) for card in chosen), absent)


def _device(card: Card, system: System, host: HostMemory, notes: tuple[str, ...]) -> Device:
    if not card.total_bytes:
        return _integrated(system, card.name, uuid=card.uuid)
    known = figures(card.name, card.total_bytes)
    capability = card.compute_capability or known.compute_capability
    return Device(
        name=card.name,
        backend="torch",
        kind="cuda",
        total_bytes=card.total_bytes,
        free_bytes=card.free_bytes,
        usable_bytes=keep_margin(card.free_bytes, card.total_bytes, _CARD_SHARE),
        memory_bandwidth=card.memory_bandwidth or known.memory_bandwidth,
        link_bandwidth=link_bandwidth(card.link_generation, card.link_lanes),
        disk_bandwidth=DISK_BANDWIDTH,
        rate_16bit=known.rate_16bit,
        rate_32bit=known.rate_32bit,
        host_free_bytes=host.usable,
        unified=False,
        here=True,
        notes=(
            *_card_notes(card),
            *known.notes,
            *kernel_notes(system, capability),
            *notes,
            *host.notes,
        ),
        because=f"memory and link from the NVIDIA driver; {known.because}",
        uuid=card.uuid,
        compute_capability=capability,
        kernels=kernel_absence(system, capability) is None,
        fault=card_fault(system, card.name),
    )


def _integrated(system: System, name: str, *, uuid: str | None = None) -> Device:
    host = host_memory(system)
    known = figures(name, host.total)
    return Device(
        name=name,
        backend="torch",
        kind="cuda",
        total_bytes=host.total,
        free_bytes=host.free,
        usable_bytes=host.usable,
        memory_bandwidth=known.memory_bandwidth,
        link_bandwidth=None,
        disk_bandwidth=DISK_BANDWIDTH,
        rate_16bit=known.rate_16bit,
        rate_32bit=known.rate_32bit,
        host_free_bytes=host.usable,
        unified=True,
        here=True,
        notes=(
            "integrated: shares the host's memory",
            *known.notes,
            *kernel_notes(system, known.compute_capability),
            *host.notes,
        ),
        because=f"memory from the operating system; {known.because}",
        uuid=uuid,
        compute_capability=known.compute_capability,
        kernels=kernel_absence(system, known.compute_capability) is None,
        fault=card_fault(system, name),
    )


def _tegra_board(system: System) -> str | None:
    """Return the name of a Jetson board, whose driver does not report memory."""
    compatible = system.read_text("/proc/device-tree/compatible") or ""
    if "nvidia,tegra" not in compatible:
        return None
    return (system.read_text("/proc/device-tree/model") or "NVIDIA Tegra").strip("\0\n ")


def _card_notes(card: Card) -> tuple[str, ...]:
    held = card.total_bytes - card.free_bytes
    if held < card.total_bytes * _MUCH:
        return ()
    return (f"the driver and other processes hold {format_bytes(held)} of the card",)


def _platform_notes(system: System) -> tuple[str, ...]:
    windows = system.platform == "win32" or "microsoft" in system.kernel.lower()
    return (_SPILLS,) if windows else ()


def _order_notes(system: System, cards: tuple[Card, ...]) -> tuple[str, ...]:
    """Say so where a number in CUDA_VISIBLE_DEVICES may mean another card than the driver's."""
    wanted = system.environment.get("CUDA_VISIBLE_DEVICES", "")
    by_bus = system.environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if by_bus or not wanted[:1].isdecimal() or len({card.name for card in cards}) == 1:
        return ()
    return ("CUDA may number these cards differently: set CUDA_DEVICE_ORDER=PCI_BUS_ID",)
