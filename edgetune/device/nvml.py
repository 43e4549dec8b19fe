"""Cards through NVIDIA's management library, read without creating a CUDA context.

https://docs.nvidia.com/deploy/nvml-api: every function returns 0 on success; sizes are bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edgetune.device.card import Card
from edgetune.device.system import System

_LIBRARIES: Final = {"win32": ("nvml.dll",), "linux": ("libnvidia-ml.so.1", "libnvidia-ml.so")}
_REASONS: Final = {
    4: "this user may not use the card",
    9: "its kernel module is not loaded",
    18: "its library and kernel module differ in version; restart the machine",
}
_NOT_SUPPORTED: Final = 3
_MEMORY_CLOCK: Final = 2
_MIG_ENABLED: Final = 1
_TEXT_BYTES: Final = 96


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def nvml_cards(system: System) -> tuple[Card, ...] | str:
    """Return every card, with divided cards as their instances; or the reason why there is none."""
    names = _LIBRARIES.get(system.platform, ())
    library = next((found for name in names if (found := system.load_library(name))), None)
    if library is None:
        return "no NVIDIA driver was found"
    code = library.nvmlInit_v2()
    if code != 0:
        return f"the NVIDIA driver does not start: {_REASONS.get(code, f'NVML error {code}')}"
    try:
        return _Driver(library).all_cards() or "the NVIDIA driver reports no card"
    finally:
        library.nvmlShutdown()


@dataclass(frozen=True, slots=True)
class _Driver:
    library: ctypes.CDLL

    def all_cards(self) -> tuple[Card, ...]:
        count = ctypes.c_uint()
        self._asked("nvmlDeviceGetCount_v2", ctypes.byref(count))
        every = (card for index in range(count.value) for card in self._cards(index))
        return tuple(card for card in every if card is not None)

    def _cards(self, index: int) -> Iterator[Card | None]:
        """Yield one card, or the instances that it is divided into."""
        handle = ctypes.c_void_p()
        if not self._asked("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle)):
            return
        if not self._divided(handle):
            yield self._card(index, handle, handle)
            return
        for number in range(self._number("nvmlDeviceGetMaxMigDeviceCount", handle)):
            part = ctypes.c_void_p()
            got = "nvmlDeviceGetMigDeviceHandleByIndex"
            if self._asked(got, handle, number, ctypes.byref(part)):
                yield self._card(index, part, handle)

    def _card(self, index: int, handle: ctypes.c_void_p, parent: ctypes.c_void_p) -> Card | None:
        memory = _Memory()
        code = self.library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        # A card that shares the host's memory does not support the question; one that fails
        # otherwise is lost to this process.
        if code not in {0, _NOT_SUPPORTED}:
            return None
        return Card(
            index=index,
            uuid=self._text("nvmlDeviceGetUUID", handle),
            name=self._text("nvmlDeviceGetName", handle),
            total_bytes=memory.total,
            free_bytes=memory.free,
            link_generation=self._number("nvmlDeviceGetMaxPcieLinkGeneration", parent),
            link_lanes=self._number("nvmlDeviceGetMaxPcieLinkWidth", parent),
            # An instance has a share of its card's bandwidth that the driver does not tell.
            memory_bandwidth=self._bandwidth(handle) if handle is parent else 0.0,
            compute_capability=self._capability(parent),
        )

    def _divided(self, handle: ctypes.c_void_p) -> bool:
        current, pending = ctypes.c_uint(), ctypes.c_uint()
        got = "nvmlDeviceGetMigMode"
        known = self._asked(got, handle, ctypes.byref(current), ctypes.byref(pending))
        return known and current.value == _MIG_ENABLED

    def _bandwidth(self, handle: ctypes.c_void_p) -> float:
        """Return bytes/s: the driver's memory clock counts half of the transfers."""
        clock = self._number("nvmlDeviceGetMaxClockInfo", handle, _MEMORY_CLOCK)
        return 2e6 * clock * self._number("nvmlDeviceGetMemoryBusWidth", handle) / 8

    def _capability(self, handle: ctypes.c_void_p) -> tuple[int, int] | None:
        major, minor = ctypes.c_int(), ctypes.c_int()
        got = "nvmlDeviceGetCudaComputeCapability"
        told = self._asked(got, handle, ctypes.byref(major), ctypes.byref(minor))
        return (major.value, minor.value) if told else None

    def _number(self, function: str, handle: ctypes.c_void_p, *arguments: int) -> int:
        number = ctypes.c_uint()
        asked = self._asked(function, handle, *arguments, ctypes.byref(number))
        return number.value if asked else 0

    def _text(self, function: str, handle: ctypes.c_void_p) -> str:
        text = ctypes.create_string_buffer(_TEXT_BYTES)
        asked = self._asked(function, handle, text, _TEXT_BYTES)
        return text.value.decode(errors="replace") if asked else ""

    def _asked(self, function: str, *arguments: object) -> bool:
        """Call a function; False if this driver or this card does not have it."""
        call = getattr(self.library, function, None)
        return call is not None and call(*arguments) == 0
