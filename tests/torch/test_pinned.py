"""Pinned host memory of a card, on a machine without one: what waits for what, and how much."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from models import make_model

from edgetune.model import LocalModel
from edgetune_torch.checkpoints import LEAVING, PinnedCheckpoints
from edgetune_torch.pages import Files
from edgetune_torch.placement import _moved, _on_host, grouped
from edgetune_torch.sources import Checkpoint

CPU = torch.device("cpu")


class Stream:
    """A stream whose work is done when it is asked for."""

    def __init__(self, *_: object) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None: ...


class Event:
    """An event that is waited for."""

    waited = 0

    def record(self, stream: Stream) -> None: ...

    def synchronize(self) -> None:
        Event.waited += 1


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def unpinned(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return empty(*size, **options)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch, "empty", unpinned)
    monkeypatch.setattr(Event, "waited", 0)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.usefixtures("card")
def test_few_checkpoints_are_on_the_card_at_one_time(count: int) -> None:
    checkpoints = PinnedCheckpoints(CPU)
    for rows in (2, 2, 3):  # the buffers are used again, then made anew
        Event.waited, put = 0, []
        for number in range(count):
            x = torch.full((rows, 4), float(number))
            put.append(ref(x))
            checkpoints.put(x)
            del x
            assert sum(there() is not None for there in put) <= LEAVING
        assert Event.waited == max(0, count - LEAVING)
        for number in reversed(range(count)):
            assert torch.equal(checkpoints.take(), torch.full((rows, 4), float(number)))
    checkpoints.close()


@pytest.mark.usefixtures("card")
def test_checkpoints_that_are_forgotten_are_not_taken() -> None:
    checkpoints = PinnedCheckpoints(CPU)
    for number in range(4):
        checkpoints.put(torch.full((2, 4), float(number)))
    checkpoints.take()
    checkpoints.clear()
    gc.collect()
    checkpoints.put(torch.full((2, 4), 9.0))

    assert torch.equal(checkpoints.take(), torch.full((2, 4), 9.0))
    checkpoints.close()


def test_pinned_blocks_share_allocations_of_powers_of_two() -> None:
    sizes = [104_000_000] * 32
    groups = grouped(sizes)
    taken = sum(1 << (sum(group) - 1).bit_length() for group in groups)

    assert [size for group in groups for size in group] == sizes
    assert taken < 1.05 * sum(sizes)
    assert grouped([3, 250, 6]) == [[3], [250, 6]]
    assert grouped([]) == []


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_blocks_go_to_a_card_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    model, files = LocalModel.open(make_model(tmp_path / "base", "llama")), Files()
    checkpoint = Checkpoint(model, quantization, files)
    expected = _on_host(checkpoint, pinned=False)
    for path in (tmp_path / "cache").rglob("*.blocks"):
        path.unlink()
    for _ in range(2):  # without the cache and with it
        found = _moved(checkpoint, CPU)
        for block in expected:
            assert torch.equal(next(found), block)
        assert next(found, None) is None
    files.close()
