"""Choosing among what was found: by name, by kind, or the best there is."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from edgetune.device.apple import read_apple
from edgetune.device.base import CARD, Device, DeviceIdentity, Reading
from edgetune.device.cpu import read_cpu
from edgetune.device.cuda import read_cuda
from edgetune.device.faults import INTEL_GRAPHICS, unused_cards
from edgetune.device.profiles import profile_device
from edgetune.device.system import System, this_system
from edgetune.errors import UsageError

_CARD: Final = re.compile(r"cuda(?::(\d+))?")
_MLX_ON_CPU: Final = "MLX runs on the processor here: good for checks, too slow for work"


def read_machine(system: System | None = None) -> Reading:
    """Return every device of this machine, and why kinds of device are absent."""
    system = system or this_system()
    cards = read_cuda(system)
    unused = unused_cards(system, has_driver=bool(cards.devices))
    return cards + read_apple(system) + Reading((read_cpu(system),), faults=unused)


def list_devices(system: System | None = None) -> tuple[Device, ...]:
    """Return every device of this machine; the processor is always one of them."""
    return read_machine(system).devices


def read_device(name: str = "auto", system: System | None = None) -> Device:
    """Return a device by name: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mlx`` or a profile's.

    ``auto`` takes an accelerator if there is one that can be used; among several cards, the one
    with most room.

    Raises:
        UsageError: if the device is not here, or no profile has the name.
    """
    if name == "auto":
        return _best(read_machine(system))
    if name == "cpu":
        return read_cpu(system or this_system())
    if name == "mlx":
        return _mlx(system or this_system())
    if match := _CARD.fullmatch(name):
        return _card(match.group(1), read_cuda(system or this_system()))
    return profile_device(name)


def found_again(device: DeviceIdentity, system: System | None = None) -> Device | None:
    """Return the processor or the card of a plan as it is now; None if it is not here.

    A card without a name of the driver's is the only one there is.
    """
    system = system or this_system()
    if device.kind == "cpu":
        return read_cpu(system)
    cards = read_cuda(system).devices if device.kind == CARD else ()
    same = [card for card in cards if device.uuid in (None, card.uuid)]
    return same[0] if len(same) == 1 else None


def _best(found: Reading) -> Device:
    """Return the best device that can be used; the processor names what it is taken instead of."""
    best = max(found.devices, key=lambda d: (d.fault is None, d.kind != "cpu", d.usable_bytes))
    if best.kind != "cpu" or best.fault is not None:
        return best
    cards = tuple(device.fault for device in found.devices if device.fault is not None)
    unused = tuple(fault for fault in found.faults if fault.what != INTEL_GRAPHICS)
    return replace(best, passed_over=(*cards, *unused))


def _card(number: str | None, found: Reading) -> Device:
    if not found.devices:
        raise UsageError(f"There is no such device here: {'; '.join(found.absent)}.")
    if number is None:
        return _best(found)
    if int(number) >= len(found.devices):
        last = len(found.devices) - 1
        raise UsageError(f"There is no cuda:{number} here; the last card is cuda:{last}.")
    return found.devices[int(number)]


def _mlx(system: System) -> Device:
    found = read_apple(system)
    if found.devices:
        return found.devices[0]
    # MLX has a processor-only build for Linux, so that its backend is tested there too.
    if system.platform == "linux" and system.has_module("mlx"):
        cpu = read_cpu(system)
        return replace(
            cpu,
            backend="mlx",
            kind="mlx",
            rate_16bit=cpu.rate_32bit / 2,  # bfloat16 is widened before it is multiplied
            multiplies_16bit=False,
            notes=(*cpu.notes, _MLX_ON_CPU),
            fault=None,
        )
    raise UsageError(f"There is no such device here: {'; '.join(found.absent)}.")
