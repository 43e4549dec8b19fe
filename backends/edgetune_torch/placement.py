"""Bringing the blocks to where the plan wants them: resident, in host memory, or on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from torch import Tensor

from edgetune.spec import Placement
from edgetune_torch.blocks import Blocks, BlockWeights, ResidentBlocks
from edgetune_torch.cache import build, cache_folder, cache_key, find, room_for, unwritable
from edgetune_torch.sources import BlockSource, Checkpoint
from edgetune_torch.stream import HostSlot, Slot, StreamedBlocks
from edgetune_torch.workspace import Workspace


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
    host = _on_host(checkpoint, pinned=workspace.device.type == "cuda" and placement == "host")
    if placement == "host":
        slots = _pinned_slots(checkpoint, workspace, host)
        return _streamed(checkpoint, blocks, slots)
    buffers = list(_moved(host, workspace.device))
    for layer, (block, buffer) in enumerate(zip(blocks, buffers, strict=True)):
        block.matrices = checkpoint.layout(layer).bind(buffer, workspace)
    return ResidentBlocks(blocks, buffers)


def _on_disk(checkpoint: Checkpoint) -> BlockSource:
    """Return the files that hold the blocks as they are stored in memory."""
    if checkpoint.quantization == "none":
        return checkpoint
    layers = checkpoint.model.shape.layers
    path = cache_folder() / f"{cache_key(checkpoint.model, checkpoint.quantization)}.blocks"
    found = find(path, checkpoint, layers, checkpoint.files)
    if found is None:
        try:
            build(path, checkpoint, layers)
        except OSError as error:
            raise unwritable("The quantized weights", path.parent, error) from None
        found = find(path, checkpoint, layers, checkpoint.files)
    if found is None:
        raise RuntimeError(f"{path} was written and cannot be opened")
    return found


def _on_host(checkpoint: Checkpoint, *, pinned: bool) -> list[Tensor]:
    """Return a buffer a block, filled: from the cache if there is one, which is made if it can be.

    Nothing is streamed from it here, so that a disk which cannot be written is no reason to stop.
    """
    layers = checkpoint.model.shape.layers
    sizes = [checkpoint.layout(layer).nbytes for layer in range(layers)]
    buffers = [torch.zeros(size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]
    source: BlockSource = checkpoint
    if checkpoint.quantization != "none":
        path = cache_folder() / f"{cache_key(checkpoint.model, checkpoint.quantization)}.blocks"
        cached = find(path, checkpoint, layers, checkpoint.files)
        with suppress(OSError):
            if cached is None and room_for(path, sum(sizes)):
                build(path, checkpoint, layers, buffers)
                return buffers
        source = cached or checkpoint
    for layer, buffer in enumerate(buffers):
        source.read(layer, buffer)
    return buffers


def _moved(buffers: list[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the buffers on a device; each leaves the host as it goes."""
    buffers.reverse()
    while buffers:
        yield buffers.pop().to(device)


def _streamed(
    source: BlockSource, blocks: Sequence[BlockWeights], slots: tuple[Slot, Slot]
) -> StreamedBlocks:
    return StreamedBlocks(blocks, [item.linear.role for item in source.layout(0).fittings], slots)


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
