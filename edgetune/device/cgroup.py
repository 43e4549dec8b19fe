"""Limits that a container or a service puts on this process (control groups, version 1 and 2).

A limit on any ancestor holds, so every level up to the mount point is read. What a group uses
counts its page cache; the inactive part of that is given back under pressure and is not in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from edgetune.device.system import System

_MEMORY_LIMITS: Final = {
    # Above memory.high the kernel throttles a process until it crawls: it is a limit too.
    1: ("memory.limit_in_bytes",),
    2: ("memory.max", "memory.high"),
}
_MEMORY_IN_USE: Final = {1: "memory.usage_in_bytes", 2: "memory.current"}
_MEMORY_EVENTS: Final = {1: "memory.oom_control", 2: "memory.events"}
_RECLAIMABLE: Final = {1: "total_inactive_file", 2: "inactive_file"}


@dataclass(frozen=True, slots=True)
class Room:
    """What one group leaves to this process, in bytes."""

    limit: int
    left: int


@dataclass(frozen=True, slots=True)
class _Group:
    folder: str
    version: int

    def read(self, system: System, name: str) -> str:
        return (system.read_text(f"{self.folder}/{name}") or "").strip()

    def number(self, system: System, name: str) -> int | None:
        text = self.read(system, name)
        return int(text) if text.isdecimal() else None


def memory_room(system: System) -> Room | None:
    """Return the tightest memory limit below the machine's own size; ``None`` without one."""
    rooms = [room for group in _groups(system, "memory") if (room := _room(system, group))]
    return min(rooms, key=lambda room: room.left, default=None)


def kills_for_memory(system: System) -> int:
    """Return how many processes were killed for want of memory: in this group and on the machine.

    Only a difference means something: counters begin at any time, and a kill can be in both.
    """
    own = next(_groups(system, "memory"), None)
    texts = [system.read_text("/proc/vmstat") or ""]
    if own is not None:
        texts.append(own.read(system, _MEMORY_EVENTS[own.version]))
    lines = (line.split() for text in texts for line in text.splitlines())
    return sum(int(line[1]) for line in lines if line[0] == "oom_kill")


def cores_allowed(system: System) -> float | None:
    """Return the number of cores that quotas allow; ``None`` without a quota."""
    quotas = [quota for group in _groups(system, "cpu") if (quota := _quota(system, group))]
    return min(quotas, default=None)


def _room(system: System, group: _Group) -> Room | None:
    found = (group.number(system, name) for name in _MEMORY_LIMITS[group.version])
    limit = min((number for number in found if number is not None), default=system.total_bytes)
    if limit >= system.total_bytes:  # Version 1 writes "no limit" as a huge number.
        return None
    in_use = group.number(system, _MEMORY_IN_USE[group.version]) or 0
    held = max(0, in_use - _reclaimable(system, group))
    return Room(limit=limit, left=max(0, limit - held))


def _reclaimable(system: System, group: _Group) -> int:
    fields = dict(
        pair
        for line in group.read(system, "memory.stat").splitlines()
        if len(pair := line.split()) == 2
    )
    return int(fields.get(_RECLAIMABLE[group.version], 0))


def _quota(system: System, group: _Group) -> float | None:
    if group.version == 2:
        quota, _, period = group.read(system, "cpu.max").partition(" ")
    else:
        quota = group.read(system, "cpu.cfs_quota_us")
        period = group.read(system, "cpu.cfs_period_us")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _groups(system: System, controller: str) -> Iterator[_Group]:
    """Yield this process's groups that may limit a resource, each followed by its ancestors."""
    paths = dict(_own_paths(system, controller))
    for version, root, mount in _mounts(system, controller):
        if version in paths:
            for folder in _upwards(paths[version], root, mount):
                yield _Group(folder, version)


def _own_paths(system: System, controller: str) -> Iterator[tuple[int, str]]:
    """Yield (version, path) of this process, as /proc/self/cgroup states them."""
    for line in (system.read_text("/proc/self/cgroup") or "").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            yield 2, path
        elif controller in controllers.split(","):
            yield 1, path


def _mounts(system: System, controller: str) -> Iterator[tuple[int, str, str]]:
    """Yield (version, root, mount point) of every hierarchy that may hold the controller."""
    for line in (system.read_text("/proc/self/mountinfo") or "").splitlines():
        mount, _, source = line.partition(" - ")
        fields, source_fields = mount.split(), source.split()
        if len(fields) < 5 or len(source_fields) < 3:
            continue
        if source_fields[0] == "cgroup2":
            yield 2, fields[3], fields[4]
        elif source_fields[0] == "cgroup" and controller in source_fields[2].split(","):
            yield 1, fields[3], fields[4]


def _upwards(path: str, root: str, mount: str) -> Iterator[str]:
    """Yield the folder of a group and those of its visible ancestors, up to the mount point."""
    own = PurePosixPath(path)
    # A group outside what is mounted (another namespace) shows as the mount point itself.
    visible = own.is_relative_to(root) and ".." not in own.parts
    inner = own.relative_to(root) if visible else PurePosixPath()
    for depth in range(len(inner.parts), -1, -1):
        yield str(PurePosixPath(mount, *inner.parts[:depth]))
