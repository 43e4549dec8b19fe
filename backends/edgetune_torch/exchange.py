"""Gradients are added up over the ranks by pieces of the buffer, while blocks before them are computed.

A piece holds the gradients of some neighbouring blocks: they are final when the backward pass of a
rank's last micro-batch has gone through the first of these. What has no block (a prefix, a last norm)
is sent at the end. The pieces and their order are the same on every rank, and so are the sums:
where a buffer is cut changes no bit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Thread
from typing import Final

import torch
from torch import Tensor

from edgetune.errors import LostRankError
from edgetune.shape import ModelShape
from edgetune.world import World
from edgetune_torch.out_of_memory import is_out_of_memory
from edgetune_torch.world import TorchWorld

LEAST: Final = 1 << 19
"""Numbers of a piece: 2 MB cost more to carry than to begin."""

NO_BLOCK: Final = -1


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the buffer that is final when the backward pass has gone through a block."""

    layer: int
    start: int
    stop: int


def pieces_of(sizes: Mapping[str, int], shape: ModelShape) -> list[Piece]:
    """Return the pieces of a buffer of tensors in this order, those of the last blocks first."""
    prefixes = {shape.block(layer): layer for layer in range(shape.layers)}
    runs: list[Piece] = []
    start = 0
    for name, size in sizes.items():
        layer = next((at for prefix, at in prefixes.items() if name.startswith(prefix)), NO_BLOCK)
        stop = start + size
        if runs and runs[-1].layer == layer:
            runs[-1] = Piece(layer, runs[-1].start, stop)
        else:
            runs.append(Piece(layer, start, stop))
        start = stop
    found: list[Piece] = []
    for run in sorted(runs, key=lambda run: (-run.layer, run.start)):
        last = found[-1] if found else None
        small = last is not None and last.stop - last.start < LEAST
        if last is not None and small and run.layer != NO_BLOCK and run.stop == last.start:
            found[-1] = Piece(run.layer, run.start, last.stop)
        else:
            found.append(run)
    return found


class Exchange:
    """Adds the gradients of one step up; every rank makes one for each step."""

    def __init__(self, world: World, flat: Tensor, pieces: Sequence[Piece]) -> None:
        """Begin with nothing sent of the buffer ``flat`` (N,)."""
        self._world, self._flat = world, flat
        self._waiting = list(reversed(pieces))
        self._queue: SimpleQueue[Tensor | None] = SimpleQueue()
        self._errors: list[Exception] = []
        self._thread: Thread | None = None

    def done(self, layer: int) -> None:
        """Send what is final: the gradients of this block and of all behind it are."""
        while self._waiting and self._waiting[-1].layer >= layer:
            self._send(self._waiting.pop())

    def finish(self) -> None:
        """Send what is left and wait for all sums, of a step that failed here too: others wait.

        Raises:
            LostRankError: if another rank is lost, or this one cannot go on with the others.
        """
        while self._waiting:
            self._send(self._waiting.pop())
        self._queue.put(None)
        if isinstance(self._world, TorchWorld):
            self._world.answered(self._wait)
        else:
            self._wait()
        if self._flat.is_cuda:
            torch.cuda.synchronize(self._flat.device)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join(TIMEOUT_MAX)
        for error in self._errors:
            if is_out_of_memory(error):
                rank = self._world.rank
                raise LostRankError(
                    f"Memory ran out on rank {rank} while gradients were exchanged, in a step that the "
                    f"other ranks take: {error}."
                ) from error
            raise error

    def _send(self, piece: Piece) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._run, name="edgetune-exchange", daemon=True)
            self._thread.start()
        self._queue.put(self._flat[piece.start : piece.stop])

    def _run(self) -> None:
        """Add pieces up, one after another, until there are no more."""
        add = _adder(self._world)
        while (piece := self._queue.get()) is not None:
            try:
                add(piece)
            except Exception as error:  # noqa: BLE001 (it is raised where it is waited for)
                self._errors.append(error)
                return


def _adder(world: World) -> Callable[[Tensor], None]:
    """Return what replaces a tensor by its sum over the ranks."""
    if isinstance(world, TorchWorld):
        return world.add_tensor

    def add(piece: Tensor) -> None:
        host = piece.cpu()
        world.add(host.numpy())
        if host is not piece:
            piece.copy_(host)

    return add
