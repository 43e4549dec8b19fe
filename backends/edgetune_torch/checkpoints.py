"""Where the inputs of checkpointed blocks wait for the backward pass.

A checkpoint is put once on the way forward and taken once on the way back, last in, first out.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections import deque
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from edgetune.errors import DiskError, UsageError
from edgetune.files import unwritable
from edgetune.settings.spec import Offload
from edgetune_torch.cache import ELSEWHERE, cache_folder
from edgetune_torch.pages import bytes_of


class Checkpoints(ABC):
    """A stack of hidden states (B, S, D), all of one shape and type within a micro-batch."""

    @abstractmethod
    def put(self, x: Tensor) -> None:
        """Keep x."""

    @abstractmethod
    def take(self) -> Tensor:
        """Return the newest kept tensor and forget it."""

    @abstractmethod
    def clear(self) -> None:
        """Forget everything, for a micro-batch that failed leaves some."""

    def close(self) -> None:
        """Give everything back."""
        self.clear()


class KeptCheckpoints(Checkpoints):
    """Checkpoints that stay where they are."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._kept: list[Tensor] = []

    def put(self, x: Tensor) -> None:
        """Keep x itself."""
        self._kept.append(x)

    def take(self) -> Tensor:
        """Return the newest."""
        return self._kept.pop()

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


class DiskCheckpoints(Checkpoints):
    """Checkpoints in one temporary file without a name: nothing can be left behind.

    The file lies in the folder of the weights' cache, because a system's folder for temporary
    files is often memory. It keeps its size from step to step.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        """Open the file.

        Raises:
            DiskError: if there is no place for it.
        """
        self.device = device
        self._folder = folder or cache_folder()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # kept open from step to step
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115
        except OSError as error:
            raise self._unwritable(error) from None
        self._kept: list[tuple[torch.Size, torch.dtype]] = []

    def put(self, x: Tensor) -> None:
        """Write x behind those that are there.

        Raises:
            DiskError: if the disk is full.
        """
        memory, done = bytes_of(x.cpu().contiguous()), 0
        try:
            self._file.seek(len(self._kept) * len(memory))
            while done < len(memory):
                done += self._file.write(memory[done:])
        except OSError as error:
            raise self._unwritable(error) from None
        self._kept.append((x.shape, x.dtype))

    def take(self) -> Tensor:
        """Read the newest."""
        shape, dtype = self._kept.pop()
        x = torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")
        memory, done = bytes_of(x), 0
        self._file.seek(len(self._kept) * prod(shape) * dtype.itemsize)
        while done < len(memory):
            done += self._file.readinto(memory[done:])
        return x.to(self.device)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def close(self) -> None:
        """Close the file, which is its end."""
        self.clear()
        self._file.close()

    def _unwritable(self, error: OSError) -> DiskError:
        return unwritable("Checkpoints of blocks", self._folder, error, ELSEWHERE)


LEAVING = 2
"""Checkpoints that a card holds while they are copied out."""


class PinnedCheckpoints(Checkpoints):
    """Checkpoints of a card in pinned host memory, copied beside the computation.

    The processor runs far ahead of the card. It therefore waits for a copy before it asks for a
    third one, or all checkpoints would be on the card until it catches up. On the way back the
    next one is on its way while the current one is used; all memory is the computing stream's,
    which waits for every copy. The host buffers are kept from step to step.
    """

    def __init__(self, device: torch.device) -> None:
        """Make a stream for the copies."""
        self.device = device
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._host: list[Tensor] = []
        self._count = 0
        self._leaving: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        self._coming: Tensor | None = None

    def put(self, x: Tensor) -> None:
        """Begin to copy x out; it is let go of when a later one is put and the copy is done."""
        if len(self._leaving) == LEAVING:
            _, copied = self._leaving.popleft()
            copied.synchronize()
        host, copied = self._buffer(x), torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copying.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copying):
            host.copy_(x, non_blocking=True)
            copied.record(self._copying)
        self._leaving.append((x, copied))
        self._count += 1

    def take(self) -> Tensor:
        """Return the newest and begin to copy the one before, unless they are still there."""
        self._count -= 1
        if self._leaving:
            x, _ = self._leaving.pop()
        else:
            x = self._begun(self._count) if self._coming is None else self._coming
            torch.cuda.current_stream(self.device).wait_stream(self._copying)
        away = self._count > 0 and not self._leaving
        self._coming = self._begun(self._count - 1) if away else None
        return x

    def clear(self) -> None:
        """Forget everything, once it is copied; the host buffers stay."""
        torch.cuda.current_stream(self.device).wait_stream(self._copying)
        self._leaving.clear()
        self._count, self._coming = 0, None

    def close(self) -> None:
        """Give the host buffers back."""
        self.clear()
        self._copying.synchronize()
        self._host.clear()

    def _begun(self, index: int) -> Tensor:
        """Return a checkpoint that is on its way back, over memory that is no longer computed on."""
        host = self._host[index]
        x = torch.empty(host.shape, dtype=host.dtype, device=self.device)
        self._copying.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copying):
            return x.copy_(host, non_blocking=True)

    def _buffer(self, x: Tensor) -> Tensor:
        """Return the host buffer of the next checkpoint, anew if the shape has changed."""
        if self._count < len(self._host) and self._host[self._count].shape != x.shape:
            self._copying.synchronize()
            del self._host[self._count :]
        if self._count == len(self._host):
            self._host.append(torch.empty(x.shape, dtype=x.dtype, pin_memory=True))
        return self._host[self._count]


def make_checkpoints(offload: Offload, device: torch.device) -> Checkpoints:
    """Return where checkpoints are kept.

    Raises:
        UsageError: if they would move from host memory to host memory.
    """
    match offload:
        case "none":
            return KeptCheckpoints()
        case "disk":
            return DiskCheckpoints(device)
        case "host":
            if device.type != "cuda":
                raise UsageError(
                    "Checkpoints of a CPU run are in host memory already: use `disk` or `none`."
                )
            return PinnedCheckpoints(device)
