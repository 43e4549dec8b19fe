"""Blocks streamed to a card: nothing is read before it is there or overwritten before it was used."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from streams import Machine, Reader, Stream, machine
from torch import Tensor

from edgetune_torch.checkpoints import PinnedCheckpoints
from edgetune_torch.stream_cuda import CardSlot, FileSlot, PinnedSlot
from edgetune_torch.streaming import StreamedBlocks
from edgetune_torch.weights import BlockWeights
from edgetune_torch.workspace import Workspace

CPU, LAYERS, SIZE = torch.device("cpu"), 6, 32


class Source:
    """Blocks whose bytes are all their number."""

    def read(self, layer: int, buffer: Tensor) -> None:
        buffer.fill_(layer)


def streamed(found: Machine, kind: str, reader: Reader, cls: dict[str, type[CardSlot]]) -> Any:
    """Return blocks that are streamed from pinned memory or from files."""
    source: Any = Source()
    copying: Any = Stream(found, "copies")
    given: Any = (source, SIZE, Workspace(CPU), copying)
    if kind == "host":
        host = [torch.empty(SIZE, dtype=torch.uint8, pin_memory=True) for _ in range(LAYERS)]
        for layer, block in enumerate(host):
            source.read(layer, block)
        slots = [cls[kind](*given, host) for _ in range(2)]
    else:
        slots = [cls[kind](*given, reader) for _ in range(2)]
    blocks = [BlockWeights() for _ in range(LAYERS)]
    return StreamedBlocks(blocks, [[] for _ in blocks], (slots[0], slots[1]))


def walked(blocks: Any, draw: Random) -> None:
    """Walk up or down, sometimes not to the end, and compute with each block some times."""
    first, last = sorted(draw.sample(range(LAYERS), 2))
    order = range(first, last + 1) if draw.random() < 0.5 else range(last, first - 1, -1)
    left = draw.randrange(LAYERS) if draw.random() < 0.2 else None
    for number, layer in enumerate(blocks.walk(order)):
        for _ in range(draw.randrange(3)):
            assert int(blocks.slot_of(layer).buffer.max()) == layer
        if number == left:
            break


SLOTS: dict[str, type[CardSlot]] = {"host": PinnedSlot, "file": FileSlot}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(monkeypatch) as found:
        yield found


@pytest.fixture
def reader(found: Machine) -> Iterator[Reader]:
    made = Reader(found)
    yield made
    made.shutdown()


@pytest.mark.parametrize("kind", SLOTS)
def test_a_thousand_walks_have_no_race(found: Machine, reader: Reader, kind: str) -> None:
    draw, blocks = Random(0), streamed(found, kind, reader, SLOTS)
    for _ in range(1000):
        walked(blocks, draw)
    blocks.close()

    assert found.races == []


class NeverReleased(PinnedSlot):
    def release(self) -> None: ...


class NeverReleasedFile(FileSlot):
    def release(self) -> None: ...


class NeverWaited(PinnedSlot):
    def _finish(self) -> None: ...


class NeverWaitedFile(FileSlot):
    def _finish(self) -> None:
        if self._read is not None:
            self._read.result()


class StagedTooEarly(FileSlot):
    def _fetch(self, layer: int) -> None:
        self.source.read(layer, self._staging)
        self._copy(self._staging)


@pytest.mark.parametrize(
    "broken",
    [NeverReleased, NeverReleasedFile, NeverWaited, NeverWaitedFile, StagedTooEarly],
)
def test_what_is_taken_out_is_found(found: Machine, reader: Reader, broken: type[CardSlot]) -> None:
    kind = "file" if issubclass(broken, FileSlot) else "host"
    draw, blocks = Random(0), streamed(found, kind, reader, {kind: broken})
    for _ in range(20):
        walked(blocks, draw)

    assert found.races


def test_checkpoints_have_no_race(found: Machine) -> None:
    checkpoints, draw = PinnedCheckpoints(CPU), Random(0)
    for _ in range(200):
        count, rows = draw.randrange(1, 7), draw.choice((2, 3))
        for number in range(count):
            x = torch.empty(rows, 4)
            x.fill_(number)
            checkpoints.put(x)
        taken = draw.randrange(count + 1)
        for number in reversed(range(count - taken, count)):
            assert float(checkpoints.take().max()) == number
        checkpoints.clear()
    checkpoints.close()

    assert found.races == []
