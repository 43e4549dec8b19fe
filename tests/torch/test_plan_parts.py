"""The parts of a plan that are formulas, each by itself against the engine's live bytes.

A whole run's peak hides what is not at it: here the loss is, and the attention of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from oracle import Case, plain
from products import products
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from edgetune.memory.batch_shape import Platform, batch_shape_of
from edgetune.memory.elementary import Elementary
from edgetune.memory.head import TRAINED, evaluation_bytes, loss_bytes
from edgetune.memory.ledger import Ledger
from edgetune.memory.sized import outside
from edgetune.memory.tile_attention import SizedTile
from edgetune.memory.tile_attention import attend_in_tile as planned_attention
from edgetune.methods import build
from edgetune.network.ops import Attended
from edgetune.settings.spec import ComputeDtype
from edgetune.shape import Attention
from edgetune_torch.attention import Keys
from edgetune_torch.dry_run import LiveBytes
from edgetune_torch.fake import CPU, fake_engine, fake_method
from edgetune_torch.gradients import Gradients
from edgetune_torch.tile_attention import BlockKeys, Tile, attend_in_tile

OVER = 0.004
CAPPED, STREAMS, LAYER_NORM, PLAIN = "gemma4_text", "gemma3n_text", "pythia-160m", "smollm2-135m"
FEW = 16
"""Bytes a token that a part may be over in any case."""


@contextmanager
def _live(*, multiplies_16bit: bool) -> Iterator[LiveBytes]:
    """Count the live bytes of tensors without content."""
    with ExitStack() as stack:
        stack.enter_context(products(multiplies_16bit=multiplies_16bit))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(LiveBytes())


def _held(live: LiveBytes, work: Callable[[], Any]) -> int:
    """Return the peak of some work over what lives before it, when scratch memory is there."""
    work()
    before = live.live
    live.restart()
    work()
    return live.peak - before


FORMATS: tuple[tuple[ComputeDtype, bool], ...] = (
    ("float32", False), ("bfloat16", False), ("bfloat16", True),
)  # fmt: skip


@pytest.mark.parametrize(("vocabulary", "chunk"), [(512, 1024), (5000, 256)])
@pytest.mark.parametrize(("dtype", "multiplies_16bit"), FORMATS)
@pytest.mark.parametrize(
    ("model", "head"),
    [
        *((model, head) for model in (CAPPED, STREAMS, PLAIN) for head in ("resident", "disk")),
        (LAYER_NORM, "disk"),
        (LAYER_NORM, TRAINED),
        (PLAIN, TRAINED),
    ],
)
def test_a_loss_takes_what_is_planned(
    model: str, head: str, dtype: ComputeDtype, vocabulary: int, chunk: int, *,
    multiplies_16bit: bool,
) -> None:  # fmt: skip
    modules = ("head",) if model == LAYER_NORM else ("embeddings",)
    method = build("lora", {"modules_to_save": modules} if head == TRAINED else {})
    choice = plain(
        method=method, compute_dtype=dtype, context=256, micro_batch=2, loss_chunk=chunk,
        head="disk" if head == "disk" else "resident",
    )  # fmt: skip
    shape = Case(model, 1, vocabulary, choice).shape
    rows = batch_shape_of(shape, choice, Platform(kind="cpu", multiplies_16bit=multiplies_16bit))
    chunk = min(chunk, rows.tokens)
    planned = loss_bytes(shape, rows, chunk, head), evaluation_bytes(shape, rows, chunk, head)
    with _live(multiplies_16bit=multiplies_16bit) as live:
        engine, own = fake_engine(shape, choice), fake_method(shape, choice)
        gradients, loss = Gradients(own.trained), engine.head_loss
        x = torch.empty(2, 256, shape.stream_size, dtype=engine.decoder.dtype)
        targets = torch.empty(2, 256, dtype=torch.int32)

        def evaluated() -> None:
            with torch.no_grad():
                loss.summed(x, targets, own)

        learnt = _held(live, lambda: loss.gradient(x, targets, own, 1.0, None))
        held = learnt, _held(live, evaluated)
        del gradients
    for mine, its in zip(planned, held, strict=True):
        assert 0 <= mine - its <= OVER * its + FEW * rows.tokens


RULES = {
    "kernel": Attention(scale=0.125),
    "window": Attention(scale=0.125, window=200),
    "cap": Attention(scale=0.125, softcap=50.0),
    "slopes": Attention(scale=0.125, slopes=(0.1,) * 12),
    "sinks": Attention(scale=0.125, sinks="sinks"),
}
HEADS, SIZE = 12, 64
TILES = {"one": (512, 0, 512), "last": (512, 256, 512), "shorter": (700, 640, 700)}
"""Positions of a row, and where a tile of them begins and ends."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kv_heads", [3, HEADS], ids=["shared", "own"])
@pytest.mark.parametrize(
    ("tile", "rows", "front"), [("one", 1, 0), ("last", 1, 20), ("last", 2, 0), ("shorter", 2, 20)]
)
@pytest.mark.parametrize("rule", RULES)
def test_attention_of_a_tile_takes_what_is_planned(
    rule: str, tile: str, rows: int, front: int, kv_heads: int, dtype: ComputeDtype
) -> None:
    own = _TileCase(RULES[rule], TILES[tile], rows, front, kv_heads, dtype)
    for mine, its in zip(own.planned(), own.held(), strict=True):
        assert 0 <= mine / its - 1 <= OVER, (mine, its)


@dataclass(frozen=True)
class _TileCase:
    """A tile with its keys and those before it, in front of which there may be others."""

    rule: Attention
    tile: tuple[int, int, int]
    rows: int
    front: int
    kv_heads: int
    dtype: ComputeDtype

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Heads and positions of queries, keys and values."""
        _, start, stop = self.tile
        return [(heads, stop - start) for heads in (HEADS, self.kv_heads, self.kv_heads)]

    def planned(self) -> tuple[int, int]:
        """Return the peak on the way forward, and on the way back."""
        positions, start, _ = self.tile
        choice = plain(compute_dtype=self.dtype, context=positions, micro_batch=self.rows)
        shape = Case(PLAIN, 1, 512, choice).shape
        batch = batch_shape_of(shape, choice, Platform(kind="cpu", multiplies_16bit=False))
        ledger, width = Ledger(), batch.width
        ops = Elementary(ledger, batch)
        q, k, v = (outside((self.rows, *x, SIZE), width, needs=True) for x in self.sizes)
        front = (1, self.kv_heads, self.front, SIZE)
        before = [outside(front, width, needs=True) for _ in range(2 if self.front else 0)]
        place = SizedTile(positions, start, graded=True)
        out = planned_attention(ops, (q, k, v), self.rule, place, (*before,) or None)
        ahead, kept = ledger.peak, ledger.live
        ledger.peak = kept
        left = ops.tape.backward({out.key: None})
        del left
        return ahead, ledger.peak - kept

    def held(self) -> tuple[int, int]:
        """Return the same of the engine."""
        positions, start, stop = self.tile
        dtype = getattr(torch, self.dtype)
        with _live(multiplies_16bit=False) as live:

            def new(rows: int, heads: int, length: int) -> Tensor:
                x = torch.empty(rows, length, heads, SIZE, dtype=dtype).transpose(1, 2)
                return x.requires_grad_()

            q, k, v = (new(self.rows, *x) for x in self.sizes)
            size = (self.rows, self.kv_heads, positions, SIZE)
            tile = Tile(start, stop, BlockKeys.empty(size, dtype, CPU).with_gradients())
            keys = Keys(((),) * self.rows, tile=tile)
            sinks = torch.empty(HEADS) if self.rule.sinks else None
            attended = Attended(q=q, k=k, v=v, rule=self.rule, keys=keys, sinks=sinks)
            front = (1, self.kv_heads, self.front)
            before = (new(*front), new(*front)) if self.front else None
            given = live.live
            live.restart()
            out = attend_in_tile(attended, tile, before)
            ahead, grad = live.peak - given, torch.empty_like(out)
            kept = live.live
            live.restart()
            out.backward(grad)
            return ahead, live.peak - kept
