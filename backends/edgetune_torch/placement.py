"""Bringing the blocks to where the plan wants them: resident, in host memory, or on disk."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from edgetune.files import unwritable
from edgetune.settings.spec import Placement
from edgetune_torch.cache import ELSEWHERE, build, cache_folder, cache_key, find, room_for
from edgetune_torch.sources import BlockSource, Checkpoint
from edgetune_torch.streaming import HostSlot, Slot, StreamedBlocks
from edgetune_torch.weights import Blocks, BlockWeights, ResidentBlocks
from edgetune_torch.workspace import Workspace

_ATTEMPTS = 10
"""Times that a cache is written which somebody deletes as often."""


def place_blocks(
    placement: Placement,
    checkpoint: Checkpoint,
    blocks: Sequence[BlockWeights],
    workspace: Workspace,
    reader: ThreadPoolExecutor,
) -> Blocks:
    """Return the blocks, whose small tensors are given, with their matrices where they belong."""
    if placement == "disk":
        source = _on_disk(checkpoint)
        return _streamed(source, blocks, _file_slots(source, len(blocks), workspace, reader))
    if placement == "host":
        slots = _pinned_slots(checkpoint, workspace, _on_host(checkpoint, pinned=True))
        return _streamed(checkpoint, blocks, slots)
    if workspace.device.type == "cpu":
        buffers = _on_host(checkpoint, pinned=False)
    else:
        buffers = list(_moved(checkpoint, workspace.device))
    for layer, (block, buffer) in enumerate(zip(blocks, buffers, strict=True)):
        block.matrices = checkpoint.layout(layer).bind(buffer, workspace)
    return ResidentBlocks(blocks, buffers)


def _on_disk(checkpoint: Checkpoint) -> BlockSource:
    """Return the files that hold the blocks as they are stored in memory."""
    if not checkpoint.converts:
        return checkpoint
    path = _cache_path(checkpoint)
    try:
        return _cached(checkpoint, path)
    except OSError as error:
        raise unwritable("The quantized weights", path.parent, error, ELSEWHERE) from None


def _cached(checkpoint: Checkpoint, path: Path) -> BlockSource:
    """Return the cache at a path, which is built if there is none.

    Raises:
        OSError: if it cannot be written.
    """
    layers = checkpoint.model.shape.layers
    for attempt in range(_ATTEMPTS):
        try:
            found = (
                find(path, checkpoint, layers, checkpoint.files)
                or build(path, checkpoint, layers, checkpoint.files)
                or find(path, checkpoint, layers, checkpoint.files)
            )
        except FileNotFoundError:  # deleted while it was written
            if attempt + 1 == _ATTEMPTS:
                raise
            continue
        if found is not None:
            return found
    raise FileNotFoundError(errno.ENOENT, "it is deleted again and again")


def _cache_path(checkpoint: Checkpoint) -> Path:
    return cache_folder() / f"{cache_key(checkpoint.model, checkpoint.quantization)}.blocks"


def _on_host(checkpoint: Checkpoint, *, pinned: bool) -> list[Tensor]:
    """Return a buffer a block, filled: from the cache if there is one, which is made if it can be.

    Nothing is streamed from it here, so that a disk which cannot be written is no reason to stop.
    """
    layers = checkpoint.model.shape.layers
    sizes = [checkpoint.layout(layer).nbytes for layer in range(layers)]
    buffers = _pinned(sizes) if pinned else [torch.zeros(x, dtype=torch.uint8) for x in sizes]
    source: BlockSource = checkpoint
    if checkpoint.converts:
        path = _cache_path(checkpoint)
        cached = find(path, checkpoint, layers, checkpoint.files)
        with suppress(OSError):
            if cached is None and room_for(path, sum(sizes)):
                build(path, checkpoint, layers, checkpoint.files, buffers)
                return buffers
        source = cached or checkpoint
    for layer, buffer in enumerate(buffers):
        source.read(layer, buffer)
    return buffers


def _pinned(sizes: list[int]) -> list[Tensor]:
    """Return pinned buffers of these sizes, several cut from one allocation."""
    buffers: list[Tensor] = []
    for group in grouped(sizes):
        whole = torch.zeros(sum(group), dtype=torch.uint8, pin_memory=True)
        buffers += torch.split(whole, group)
    return buffers


def grouped(sizes: list[int]) -> list[list[int]]:
    """Return sizes in groups that are the least once each is a power of two.

    torch allocates pinned memory so: a block of 105 MB alone would take 134.

    >>> grouped([5, 5, 5, 5])
    [[5], [5, 5, 5]]
    """
    best: list[tuple[int, list[list[int]]]] = [(0, [])]
    for stop in range(1, len(sizes) + 1):
        ways = (
            (best[start][0] + (1 << (sum(sizes[start:stop]) - 1).bit_length()), start)
            for start in range(stop)
        )
        taken, start = min(ways)
        best.append((taken, [*best[start][1], sizes[start:stop]]))
    return best[-1][1]


def _moved(checkpoint: Checkpoint, device: torch.device) -> Iterator[Tensor]:
    """Yield the blocks on a card; the host holds one of them at a time."""
    layers = checkpoint.model.shape.layers
    source: BlockSource = checkpoint
    if checkpoint.converts:
        path = _cache_path(checkpoint)
        total = sum(checkpoint.layout(layer).nbytes for layer in range(layers))
        with suppress(OSError):  # a disk that cannot be written is no reason to stop
            if path.exists() or room_for(path, total):
                source = _cached(checkpoint, path)
    host = torch.zeros(_largest(checkpoint, layers), dtype=torch.uint8)
    for layer in range(layers):
        block = host[: checkpoint.layout(layer).nbytes]
        source.read(layer, block)
        yield block.to(device)


def _streamed(
    source: BlockSource, blocks: Sequence[BlockWeights], slots: tuple[Slot, Slot]
) -> StreamedBlocks:
    layouts = (source.layout(layer) for layer in range(len(blocks)))
    keys = [[item.linear.key for item in layout.fittings] for layout in layouts]
    return StreamedBlocks(blocks, keys, slots)


def _largest(source: BlockSource, layers: int) -> int:
    return max(source.layout(layer).nbytes for layer in range(layers))


def _file_slots(
    source: BlockSource, layers: int, workspace: Workspace, reader: ThreadPoolExecutor
) -> tuple[Slot, Slot]:
    size = _largest(source, layers)
    if workspace.device.type == "cpu":
        return (
            HostSlot(source, size, workspace, reader),
            HostSlot(source, size, workspace, reader),
        )
    from edgetune_torch.stream_cuda import FileSlot

    copying = torch.cuda.Stream(workspace.device)  # type: ignore[no-untyped-call]
    return (
        FileSlot(source, size, workspace, copying, reader),
        FileSlot(source, size, workspace, copying, reader),
    )


def _pinned_slots(
    checkpoint: Checkpoint, workspace: Workspace, host: list[Tensor]
) -> tuple[Slot, Slot]:
    from edgetune_torch.stream_cuda import PinnedSlot

    size, copying = _largest(checkpoint, len(host)), torch.cuda.Stream(workspace.device)  # type: ignore[no-untyped-call]
    return (
        PinnedSlot(checkpoint, size, workspace, copying, host),
        PinnedSlot(checkpoint, size, workspace, copying, host),
    )
