"""The host's memory as this process may use it, and the processor as a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgetune.device.base import DISK_BANDWIDTH, Device, keep_margin
from edgetune.device.cgroup import cores_allowed, memory_room
from edgetune.device.faults import torch_fault
from edgetune.device.system import System
from edgetune.units import format_bytes

MARGIN_SHARE: Final = 0.05
"""Share of the host's memory that is left to the desktop."""

_BFLOAT16: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""What Linux calls bfloat16 products on x86 and on ARM."""

_KERNELS: Final = frozenset(
    {"avx512_bf16", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"}
)
"""A virtual machine may hide any of them."""

_LIMITS_OF_ONEDNN: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_WITHOUT_BFLOAT16: Final = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)

_IN_USE: Final = {"RLIMIT_AS": "VmSize:", "RLIMIT_DATA": "VmData:"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """The host's memory after every limit on this process, in bytes."""

    total: int
    free: int
    usable: int
    notes: tuple[str, ...]


def host_memory(system: System) -> HostMemory:
    """Return what this process may use of the host's memory."""
    total, free, notes = system.total_bytes, system.available_bytes, []
    if room := memory_room(system):
        total, free = room.limit, min(free, room.left)
        notes.append(
            f"a container or service limits this process to {format_bytes(room.limit)}, "
            f"{format_bytes(room.left)} of it free"
        )
    for name, limit in system.ceilings.items():
        left = max(0, limit - _in_use(system, _IN_USE[name]))
        if left < free:
            free = left
            notes.append(f"{name} limits this process to {format_bytes(limit)} (`ulimit`)")
    return HostMemory(
        total=total, free=free, usable=keep_margin(free, total, MARGIN_SHARE), notes=tuple(notes)
    )


def read_cpu(system: System) -> Device:
    """Return the processor of a machine; rates are estimated from cores, clock and vector width."""
    memory = host_memory(system)
    rate_32bit, rate_16bit, how = _rates(system)
    name = _processor_name(system)
    return Device(
        name=name,
        backend="torch",
        kind="cpu",
        total_bytes=memory.total,
        free_bytes=memory.free,
        usable_bytes=memory.usable,
        memory_bandwidth=0.0,
        link_bandwidth=None,
        disk_bandwidth=DISK_BANDWIDTH,
        rate_16bit=rate_16bit,
        rate_32bit=rate_32bit,
        multiplies_16bit=multiplies_16bit(system),
        host_free_bytes=memory.usable,
        unified=True,
        here=True,
        notes=memory.notes,
        because=f"memory from the operating system and its limits; {how}; memory bandwidth unknown",
        fault=torch_fault(system, name),
    )


def multiplies_16bit(system: System) -> bool:
    """Return whether the processor says that it multiplies bfloat16; False where it is mute.

    Plans and the engine both ask here. oneDNN, which does the products, may be told by the
    environment to leave the units alone.
    """
    allowed = {system.environment.get(name, "").upper() for name in _LIMITS_OF_ONEDNN}
    return bool(_flags(system) & _BFLOAT16) and not allowed & _WITHOUT_BFLOAT16


def dots_bfloat16(system: System) -> bool:
    """Return whether the processor has all that kernels of our own are compiled for."""
    return _flags(system) >= _KERNELS


def _in_use(system: System, field: str) -> int:
    for line in (system.read_text("/proc/self/status") or "").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _processor_name(system: System) -> str:
    fields = ("model name", "Model")
    for line in (system.read_text("/proc/cpuinfo") or "").splitlines():
        field, _, value = line.partition(":")
        if field.strip() in fields and value.strip():
            return " ".join(value.split())
    return f"{system.architecture} processor"


def _rates(system: System) -> tuple[float, float, str]:
    """Return float32 and 16-bit FLOP/s, and how they were estimated."""
    per_cycle_32, per_cycle_16, units = _vector_units(system)
    if not system.clock:
        return 0.0, 0.0, "rates unknown: the clock cannot be read"
    if not per_cycle_32:
        return 0.0, 0.0, "rates unknown: the vector units cannot be read"
    cores = min(float(system.cores), cores_allowed(system) or float(system.cores))
    cycles = cores * system.clock
    how = f"rates estimated from {cores:g} cores at {system.clock / 1e9:.1f} GHz with {units}"
    return cycles * per_cycle_32, cycles * per_cycle_16, how


def _vector_units(system: System) -> tuple[int, int, str]:
    """Return FLOP a cycle and core in float32 and in 16 bit, and the units they are done by.

    Two 128-bit (NEON) or 256-bit multiply-add units are counted: laptop processors have one
    512-bit unit or two halves of it. Without 16-bit products, float32 does the work of both.
    """
    narrow, flags = multiplies_16bit(system), _flags(system)
    if system.architecture.lower() in {"arm64", "aarch64"}:
        return (16, 32, "NEON (bfloat16)") if narrow else (16, 16, "NEON")
    if narrow and "amx_bf16" in flags:
        return 64, 2048, "AMX"
    if narrow:
        return 32, 64, "AVX-512 (bfloat16)"
    return (32, 32, "AVX2") if {"avx2", "fma"} <= flags else (0, 0, "")


def _flags(system: System) -> frozenset[str]:
    for line in (system.read_text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()
