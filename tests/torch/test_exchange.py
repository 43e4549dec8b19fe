"""Gradients are sent by pieces while blocks are computed, and the sums are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from conformance.sessions import Bench
from conformance.test_ranks import assert_same, opened, trained
from models import make_model
from support.threads import ThreadWorld, in_ranks

from edgetune.device import read_device
from edgetune.errors import LostRankError
from edgetune.methods.lora import Lora
from edgetune.methods.prefix import Prefix
from edgetune.model import LocalModel
from edgetune.world import ALONE
from edgetune_torch import exchange
from edgetune_torch.backend import TorchBackend
from edgetune_torch.exchange import Exchange, Piece, pieces_of

NETWORK = Prefix(prefix_length=3, reparameterize=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("llama")
    return LocalModel.open(make_model(folder, "llama", num_hidden_layers=3))


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as held:
        yield Bench("torch", TorchBackend(), read_device("cpu"), held)


def sizes_of(llama: LocalModel, method: Any) -> dict[str, int]:
    return {each.name: each.size for each in method.tensors(llama.shape) if each.trained}


def test_pieces_hold_neighbouring_blocks_the_last_ones_first(
    llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of(llama, Lora(rank=2))
    every, layers = sum(sizes.values()), llama.shape.layers
    (whole,) = pieces_of(sizes, llama.shape)
    assert whole == Piece(0, 0, every)

    monkeypatch.setattr(exchange, "LEAST", 1)
    found = pieces_of(sizes, llama.shape)
    assert [piece.layer for piece in found] == list(reversed(range(layers)))
    assert [(piece.start, piece.stop) for piece in reversed(found)] == [
        (layer * every // layers, (layer + 1) * every // layers) for layer in range(layers)
    ]

    (prefix,) = pieces_of(sizes_of(llama, NETWORK), llama.shape)
    assert prefix.layer == exchange.NO_BLOCK


@pytest.mark.parametrize("method", [Lora(rank=2, dropout=0.2), NETWORK], ids=str)
def test_pieces_are_sent_during_the_backward_pass_and_change_no_bit(
    bench: Bench, llama: LocalModel, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_on = opened(bench, llama, method)
    expected = trained(open_on(ALONE), ALONE)
    left: list[int] = []
    finish = Exchange.finish

    def finished(self: Exchange) -> None:
        left.append(len(self._waiting))
        finish(self)

    monkeypatch.setattr(exchange, "LEAST", 1)
    monkeypatch.setattr(Exchange, "finish", finished)
    for rank in in_ranks(4, lambda world: trained(open_on(world), world)):
        assert_same(rank, expected)
    sent_before = left.count(0)
    assert (sent_before > 0) == (method.kind == "lora")


def test_memory_that_runs_out_while_pieces_are_sent_is_named(
    bench: Bench, llama: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_on = opened(bench, llama, Lora(rank=2))

    def no_memory(_: object) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        )

    def failing(world: ThreadWorld) -> object:
        if world.rank == 1:
            monkeypatch.setattr(world, "add", no_memory)
        return trained(open_on(world), world)

    for rank in in_ranks(2, failing):
        assert isinstance(rank, LostRankError)
    assert "Memory ran out on rank 1 while gradients were exchanged" in str(rank)
