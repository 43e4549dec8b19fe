"""Reading parts of files into memory that is already there, and giving back the cached pages."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from edgetune.errors import ModelError

_AT_ONCE = 1024
"""Pieces of memory that one call fills; systems allow no more."""


@dataclass(frozen=True, slots=True)
class Extent:
    """``length`` bytes of a file from ``start`` on, that belong at ``offset`` of a buffer."""

    path: Path
    start: int
    length: int
    offset: int = 0


class Files:
    """Files held open for reading at any position, by several threads."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._descriptors: dict[Path, int] = {}
        self._lock = Lock()

    def read(self, extent: Extent, buffer: memoryview) -> None:
        """Fill ``buffer`` from its ``offset`` on; the pages do not stay cached.

        Raises:
            ModelError: if the file cannot be read or ends early.
        """
        self._reading(extent, [buffer[extent.offset : extent.offset + extent.length]])

    def scatter(self, extent: Extent, pieces: Sequence[memoryview]) -> None:
        """Read a span of a file into ``pieces``, one after the other; see :meth:`read`."""
        self._reading(extent, pieces)

    def _reading(self, extent: Extent, pieces: Sequence[memoryview]) -> None:
        try:
            descriptor = self._descriptor(extent.path)
            self._fill(descriptor, extent, pieces)
            _forget(descriptor, extent)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise MemoryError(error.strerror) from None
            raise ModelError(
                f"{extent.path} cannot be read: {error.strerror or error}. Was it moved?"
            ) from None

    def hold(self, path: Path, source: Path | None = None) -> int:
        """Open a file now, so that it can be read whoever deletes it; return its descriptor.

        ``source`` is where it lies now, if it will be renamed to ``path``; what was held as
        ``path`` before is let go of.

        Raises:
            OSError: if it is not there.
        """
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(source or path, flags)
        with self._lock:
            before = self._descriptors.pop(path, None)
            if before is not None:
                os.close(before)
            self._descriptors[path] = descriptor
        return descriptor

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path in self._descriptors:
                return self._descriptors[path]
        return self.hold(path)

    def _fill(self, descriptor: int, extent: Extent, pieces: Sequence[memoryview]) -> None:
        done, left = 0, list(reversed(pieces))
        while left:
            together = left[: -_AT_ONCE - 1 : -1]
            count = self._read_some(descriptor, together, extent.start + done)
            if count == 0:
                raise ModelError(f"{extent.path} ends early: it is damaged. Copy it again.")
            done += count
            while left and count >= len(left[-1]):
                count -= len(left.pop())
            if count:
                left[-1] = left[-1][count:]

    def _read_some(self, descriptor: int, pieces: list[memoryview], start: int) -> int:
        if os.name == "nt":  # no positional reads
            with self._lock:
                os.lseek(descriptor, start, os.SEEK_SET)
                data = os.read(descriptor, len(pieces[0]))
            pieces[0][: len(data)] = data
            return len(data)
        return os.preadv(descriptor, pieces, start)


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the host as writable bytes."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _forget(descriptor: int, extent: Extent) -> None:
    """Tell the system that these pages will not be read again soon: its cache is not ours."""
    advise = getattr(os, "posix_fadvise", None)
    if advise is not None:
        advise(descriptor, extent.start, extent.length, os.POSIX_FADV_DONTNEED)
