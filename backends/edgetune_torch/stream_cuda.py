"""Slots on a card: blocks come from pinned host memory over a stream of their own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from edgetune_torch.sources import BlockSource
from edgetune_torch.streaming import Slot
from edgetune_torch.workspace import Workspace


class CardSlot(Slot):
    """A slot in the card's memory; ``copied`` and ``used`` order copies and computation."""

    def __init__(
        self, source: BlockSource, size: int, workspace: Workspace, copying: torch.cuda.Stream
    ) -> None:
        """Allocate ``size`` bytes on the card that ``copying`` belongs to."""
        buffer = torch.empty(size, dtype=torch.uint8, device=workspace.device)
        super().__init__(source, buffer, workspace)
        self._copying = copying
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._used = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._used.record(torch.cuda.current_stream(workspace.device))

    def _copy(self, host: Tensor) -> None:
        with torch.cuda.stream(self._copying):
            self._copying.wait_event(self._used)
            self.buffer[: host.numel()].copy_(host, non_blocking=True)
            self._copied.record(self._copying)

    def _finish(self) -> None:
        torch.cuda.current_stream(self.workspace.device).wait_event(self._copied)

    def release(self) -> None:
        """Let the next copy begin when the computation queued so far is done."""
        self._used.record(torch.cuda.current_stream(self.workspace.device))


class PinnedSlot(CardSlot):
    """A slot filled from blocks that wait in pinned host memory."""

    def __init__(
        self,
        source: BlockSource,
        size: int,
        workspace: Workspace,
        copying: torch.cuda.Stream,
        host: Sequence[Tensor],
    ) -> None:
        """Copy from ``host``, a pinned buffer a block."""
        super().__init__(source, size, workspace, copying)
        self._host = host

    def _begin(self, layer: int) -> None:
        self._copy(self._host[layer])


class FileSlot(CardSlot):
    """A slot filled from files by way of one pinned buffer."""

    def __init__(
        self,
        source: BlockSource,
        size: int,
        workspace: Workspace,
        copying: torch.cuda.Stream,
        reader: ThreadPoolExecutor,
    ) -> None:
        """Read with ``reader`` into pinned memory of the slot's size."""
        super().__init__(source, size, workspace, copying)
        self._staging = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._reader = reader
        self._read: Future[None] | None = None

    def _begin(self, layer: int) -> None:
        self._read = self._reader.submit(self._fetch, layer)

    def _fetch(self, layer: int) -> None:
        self._copied.synchronize()  # the pinned buffer may still be on its way
        self.source.read(layer, self._staging)
        self._copy(self._staging)

    def _finish(self) -> None:
        if self._read is not None:
            read, self._read = self._read, None
            read.result()
        super()._finish()
