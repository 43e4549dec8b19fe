"""Blocks that are computed tile by tile give the losses and gradients of whole ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import BATCH, LORA, Opened, micro_batch, opened
from models import CARRYING, MIXERS, make_model
from reference import Reference, relative_error
from torch import Tensor

from edgetune.data.batch import MicroBatch
from edgetune.methods import METHODS, Method, build
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune_torch.generate import new_cache, read
from edgetune_torch.linear import mask

FAMILIES = (
    "llama", "qwen3", "gemma2", "phi3", "gpt2", "bloom", "gpt_oss", "falcon", "deepseek_v3",
)  # fmt: skip
"""With norms of heads, windows and caps, joined projections, biases, slopes, sinks and experts,
parallel halves, latents."""
EXACT, CLOSE, CARRIED = 1e-6, 4e-6, 1e-5
"""Of losses; of gradients, which float32 leaves as far from those in float64; and of those through
a state that is carried, which are 1.4e-5 from float64's whole and 1.2e-5 in tiles."""
TILES = (8, 5)
NETWORK = build("prefix", {"reparameterize": True})
ALL = {"checkpointed": 99, "chunk": 7}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return LocalModel.open(make_model(tmp_path_factory.mktemp("tiles") / "base", "llama"))


def _gradients(ours: Opened, batch: MicroBatch, step: str | None = None) -> tuple[float, Tensor]:
    """Return loss and all gradients; those that depend on a step are of its first micro-batch."""
    drawn = ours if step is None else Opened(ours.engine, ours.method.drawing(step))
    loss, grads = drawn.gradients(batch, scale=0.1)
    return loss, torch.cat([grads[name].flatten() for name in sorted(grads)])


def _same(
    model: LocalModel, method: Method, batch: MicroBatch = BATCH, step: str | None = None,
    close: float = CLOSE, **options: Any,
) -> None:  # fmt: skip
    given: dict[str, Any] = {**ALL, **options}
    with opened(model, lora=method, **given) as whole:
        loss, grads = _gradients(whole, batch, step)
        evaluated = whole.engine.evaluate(batch, whole.method)
    for tile in TILES:
        with opened(model, lora=method, tile=tile, **given) as tiled:
            found, others = _gradients(tiled, batch, step)
            again = tiled.engine.evaluate(batch, tiled.method)
        assert found == pytest.approx(loss, rel=EXACT)
        assert again.loss == pytest.approx(evaluated.loss, rel=EXACT)
        assert relative_error(others, grads.double()) < close, tile


@pytest.mark.parametrize("family", [*FAMILIES, *CARRYING])
def test_every_family(family: str, tmp_path: Path) -> None:
    close = CARRIED if family in CARRYING else CLOSE
    _same(LocalModel.open(make_model(tmp_path / "base", family)), LORA, close=close)


@pytest.mark.parametrize("kind", METHODS)
def test_every_method(kind: str, llama: LocalModel) -> None:
    # its constants are drawn far larger here than they are: they would amplify what is rounded
    settings = {"dimension": 16} if kind == "intrinsic" else {}
    _same(llama, build(kind, settings), step="3")


@pytest.mark.parametrize("family", ["gemma2", "bloom", "gpt_oss"])
def test_prefixes_before_scores_that_are_made(family: str, tmp_path: Path) -> None:
    _same(LocalModel.open(make_model(tmp_path / "base", family)), NETWORK)


def test_attention_in_groups(llama: LocalModel) -> None:
    _same(llama, Lora(rank=3, attention_group=4), step="0")


def test_what_is_dropped_does_not_depend_on_tiles(llama: LocalModel) -> None:
    _same(llama, Lora(rank=3, dropout=0.3), step="0")


def test_a_mask_is_drawn_by_position() -> None:
    from edgetune.network.ops import Dropout

    size, device = (2, 700, 8), torch.device("cpu")
    whole = mask(Dropout(0.5, 2**40), torch.Size(size), device)
    parts = [
        mask(Dropout(0.5, 2**40, start), torch.Size((2, stop - start, 8)), device)
        for start, stop in ((0, 256), (256, 300), (300, 700))
    ]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert 0.45 < float(whole.float().mean()) < 0.55
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0, :256], whole[0, 256:512])


@pytest.mark.parametrize("options", [
    {"checkpointed": 1}, {"offload": "disk"}, {"blocks": "disk", "offload": "disk", "head": "disk"},
], ids=str)  # fmt: skip
def test_wherever_things_are(options: dict[str, Any], llama: LocalModel) -> None:
    _same(llama, LORA, **options)


@pytest.mark.parametrize("checkpointed", [2, 3])
def test_it_is_said_when_a_block_has_given_its_gradients(
    checkpointed: int, llama: LocalModel
) -> None:
    done: list[int] = []
    with opened(llama, tile=8, checkpointed=checkpointed) as ours:
        ours.engine.gradients(BATCH, ours.method, scale=1.0, done=done.append)
    assert done == [2, 1, 0]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_they_equal_autograd_on_the_dense_model(family: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    with opened(model, "nf4", tile=8, **ALL) as ours:
        reference = Reference(model.folder, ours.engine, LORA)
        loss, grads = ours.gradients(BATCH)
        expected_loss, expected = reference.gradients(BATCH, ours.method.tensors)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, grad in grads.items():
        assert relative_error(grad, expected[name]) < 1e-5, name


def test_more_keys_than_a_piece_has(llama: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetune_torch import tile_attention

    monkeypatch.setattr(tile_attention, "KEYS", 3)
    monkeypatch.setattr(tile_attention, "SCORED_KEYS", 3)
    monkeypatch.setattr(tile_attention, "SCORED_QUERIES", 2)
    batch = micro_batch((40, 6), (45,), width=48)
    _same(llama, NETWORK, batch)
    monkeypatch.setattr(tile_attention, "_fused", lambda *_: False)
    _same(llama, NETWORK, batch)


@pytest.mark.usefixtures("products")
def test_in_bfloat16_tiles_are_as_right_as_whole_blocks(llama: LocalModel) -> None:
    with opened(llama, **ALL) as wide:
        _, expected = _gradients(wide, BATCH)
    errors = []
    for tile in (0, 8):
        with opened(llama, dtype=torch.bfloat16, tile=tile, **ALL) as narrow:
            _, found = _gradients(narrow, BATCH)
            errors.append(relative_error(found, expected.double()))
    assert errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("family", ["llama", "gemma2", *MIXERS])
def test_prompts_are_read_tile_by_tile(family: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    draw = np.random.default_rng(0)
    prompts = [list(map(int, draw.integers(3, 97, size))) for size in (21, 7, 13)]
    answers = []
    for tile in (0, 8):
        with opened(model, tile=tile) as ours:
            engine = ours.engine
            caches = [new_cache(engine.decoder, ours.method, 60) for _ in prompts]
            turns = (prompts, [[5], [6], [7]], prompts[::-1])
            answers.append([
                read(engine.decoder, engine.head, list(zip(caches, turn, strict=True)))
                for turn in turns
            ])  # fmt: skip
    for whole, tiled in zip(*answers, strict=True):
        assert relative_error(tiled, whole.double()) < CLOSE


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_documents_that_go_on_from_another(family: str, kind: str, tmp_path: Path) -> None:
    batch = replace(micro_batch((9, 3, 2, 4), (11, 4), width=19), shared=((0, 7, 6, 0), (0, 9)))
    _same(LocalModel.open(make_model(tmp_path / "base", family)), build(kind, {}), batch)
