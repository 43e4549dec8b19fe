"""Blocks that are computed tile by tile on MLX give the losses and gradients of whole ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from adapters import random_tensors
from engines import BATCH, micro_batch
from mlx_sessions import open_session
from models import CARRYING, LONGROPE, MIXERS, make_model
from numpy.typing import NDArray

from edgetune.backend import DEFAULT_ADAPTER
from edgetune.data.batch import MicroBatch
from edgetune.methods import METHODS, Method, build
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.network.ops import Dropout
from edgetune_mlx import tile_attention
from edgetune_mlx.linear import kept

FAMILIES = (
    "llama", "qwen3", "gemma2", "phi3", "gpt2", "bloom", "gpt_oss", "falcon", "deepseek_v3",
)  # fmt: skip
"""With norms of heads, windows and caps, joined projections, biases, slopes, sinks and experts,
parallel halves, latents."""
LORA = Lora(rank=3)
NETWORK = build("prefix", {"reparameterize": True})
EXACT, CLOSE = 1e-6, 4e-6
"""Of losses, and of gradients, which float32 leaves as far from those in float64."""
TILES = (8, 5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiles") / "base", "llama")


def _opened(folder: Path, method: Method, **changes: Any) -> Any:
    """Return a session with all blocks checkpointed, and random tensors of a method."""
    layers = changes.pop("checkpointing", LocalModel.open(folder).shape.layers)
    session: Any = open_session(folder, checkpointing=layers, **changes)
    tensors = {k: mx.array(x) for k, x in random_tensors(method, session.shape).items()}
    session.method = type(session.method)(method, session.shape, tensors)
    return session


def _gradients(
    session: Any, batch: MicroBatch, step: str | None = None, **options: Any
) -> tuple[float, NDArray[np.float32]]:
    """Return loss and all gradients."""
    grads: dict[str, mx.array] = {}
    method = session.method if step is None else session.method.drawing(step)
    sums = session.engine.gradients(batch, method, scale=0.1, into=grads, **options)
    return sums.loss, np.concatenate([np.array(grads[name]).ravel() for name in sorted(grads)])


def _same(
    folder: Path, method: Method, batch: MicroBatch = BATCH, step: str | None = None,
    tiles: Sequence[int] = TILES, options: dict[str, Any] | None = None, **changes: Any,
) -> None:  # fmt: skip
    session, own = _opened(folder, method, **changes), options or {}
    loss, grads = _gradients(session, batch, step, **own)
    evaluated = session.engine.evaluate(batch, session.method)
    for tile in tiles:
        session.engine.decoder.tile = tile
        found, others = _gradients(session, batch, step, **own)
        again = session.engine.evaluate(batch, session.method)
        assert found == pytest.approx(loss, rel=EXACT)
        assert again.loss == pytest.approx(evaluated.loss, rel=EXACT)
        assert (again.tokens, again.correct) == (evaluated.tokens, evaluated.correct)
        assert _apart(others, grads) < CLOSE, tile


def _apart(found: Any, expected: Any) -> float:
    wide = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(found) - wide) / np.linalg.norm(wide))


@pytest.mark.parametrize("family", [*FAMILIES, *CARRYING])
def test_every_family(family: str, tmp_path: Path) -> None:
    _same(make_model(tmp_path / "base", family), LORA, tiles=(8,))


@pytest.mark.parametrize("kind", METHODS)
def test_every_method(kind: str, llama: Path) -> None:
    # its constants are drawn far larger here than they are: they would amplify what is rounded
    settings = {"dimension": 16} if kind == "intrinsic" else {}
    _same(llama, build(kind, settings), step="3", tiles=(5,))


@pytest.mark.parametrize("family", ["gemma2", "bloom", "gpt_oss"])
def test_prefixes_before_windows_slopes_and_sinks(family: str, tmp_path: Path) -> None:
    _same(make_model(tmp_path / "base", family), NETWORK)


def test_attention_in_groups(llama: Path) -> None:
    _same(llama, Lora(rank=3, attention_group=4), step="0")


def test_what_is_dropped_does_not_depend_on_tiles(llama: Path) -> None:
    _same(llama, Lora(rank=3, dropout=0.3), step="0")


def test_a_mask_is_drawn_by_position() -> None:
    whole = np.array(kept(Dropout(0.5, 2**63 + 5), (2, 700, 8)))
    parts = [
        np.array(kept(Dropout(0.5, 2**63 + 5, start), (2, stop - start, 8)))
        for start, stop in ((0, 256), (256, 300), (300, 700))
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert 0.45 < whole.mean() < 0.55
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(whole[0, :256], whole[0, 256:512])
    assert not np.array_equal(whole, np.array(kept(Dropout(0.5, 2**62 + 5), (2, 700, 8))))


@pytest.mark.parametrize("changes", [
    {"checkpointing": 1}, {"placement": "disk"},
], ids=str)  # fmt: skip
def test_wherever_things_are(changes: dict[str, Any], llama: Path) -> None:
    _same(llama, LORA, **changes)


def test_inputs_wait_on_disk(llama: Path) -> None:
    from edgetune_mlx.checkpoints import OnDisk

    session = _opened(llama, LORA)
    session.engine.decoder.tile = 8
    kept_in_memory = _gradients(session, BATCH)
    session.engine.entries = OnDisk()
    loss, grads = _gradients(session, BATCH)
    assert loss == kept_in_memory[0]
    assert np.array_equal(grads, kept_in_memory[1])


def test_answers_are_weighed_row_by_row(llama: Path) -> None:
    session, seen = _opened(llama, LORA), []

    def weigh(losses: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(losses)
        return np.linspace(0, 1, len(losses), dtype=np.float32)

    found = []
    for tile in (0, 5):
        session.engine.decoder.tile = tile
        found.append(_gradients(session, BATCH, weigh=weigh))
    assert _apart(seen[1], seen[0]) < EXACT
    assert found[1][0] == pytest.approx(found[0][0], rel=EXACT)
    assert _apart(found[1][1], found[0][1]) < CLOSE


def test_rows_of_several_adapters(llama: Path) -> None:
    session, other = _opened(llama, NETWORK), build("lora", {"rank": 2})
    session.attach("other", other, random_tensors(other, session.shape, seed=1))
    batch, results = micro_batch((17,), (16,), width=19), []
    for tile in (0, 5):
        session.engine.decoder.tile = tile
        results.append(session.evaluate_rows(batch, [DEFAULT_ADAPTER, "other"]))
    for whole, tiled in zip(*results, strict=True):
        assert tiled.loss_sum == pytest.approx(whole.loss_sum, rel=EXACT)
        assert tiled.correct == whole.correct


@pytest.mark.parametrize(("family", "kind"), [("llama", "lora"), ("gemma2", "prefix")])
def test_more_keys_than_a_piece_has(
    family: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_attention, "KEYS", 8)
    monkeypatch.setattr(tile_attention, "QUERIES", 5)
    batch = micro_batch((40, 6), (45,), width=48)
    _same(make_model(tmp_path / "base", family), build(kind, {}), batch, tiles=(20,))


def test_a_few_hundred_tokens(llama: Path) -> None:
    _same(llama, Lora(rank=3, dropout=0.1), micro_batch((320,), width=320), "0", tiles=(128,))


def test_in_bfloat16_tiles_are_as_right_as_whole_blocks(llama: Path) -> None:
    _, expected = _gradients(_opened(llama, LORA), BATCH)
    session, errors = _opened(llama, LORA, compute_dtype="bfloat16"), []
    for tile in (0, 8):
        session.engine.decoder.tile = tile
        errors.append(_apart(_gradients(session, BATCH)[1], expected))
    assert errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("family", ["llama", "gemma2", *MIXERS])
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_prompts_are_read_tile_by_tile(family: str, kind: str, tmp_path: Path) -> None:
    _read_alike(_opened(make_model(tmp_path / "base", family), build(kind, {})))


def test_prompts_whose_rotation_depends_on_their_length(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base", "llama", rope_parameters=LONGROPE)
    _read_alike(_opened(folder, LORA))


def _read_alike(session: Any) -> None:
    draw = np.random.default_rng(0)
    prompts = [list(map(int, draw.integers(3, 97, size))) for size in (21, 7, 13)]
    answers = []
    for tile in (0, 8):
        session.engine.decoder.tile = tile
        caches = [session.new_cache(DEFAULT_ADAPTER, 60) for _ in prompts]
        turns = (prompts, [[5], [6], [7]], prompts[::-1])
        answers.append([session.read(list(zip(caches, turn, strict=True))) for turn in turns])
    for whole, tiled in zip(*answers, strict=True):
        assert _apart(tiled, whole) < CLOSE


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_documents_that_go_on_from_another(family: str, kind: str, tmp_path: Path) -> None:
    batch = replace(micro_batch((9, 3, 2, 4), (11, 4), width=19), shared=((0, 7, 6, 0), (0, 9)))
    _same(make_model(tmp_path / "base", family), build(kind, {}), batch)


def test_a_planned_run_in_tiles_goes_on_bit_for_bit(llama: Path) -> None:
    batch = micro_batch((80, 20), (128,), width=128)

    def session() -> Any:
        return open_session(
            llama, checkpointing=3, context=128, micro_batch=2, tile=64, dropout=0.2
        )

    def steps(of: Any, count: int) -> list[float]:
        tokens = batch.loss_tokens
        return [of.step([batch], loss_tokens=tokens, learning_rate=1e-2).loss for _ in range(count)]

    whole, begun = session(), session()
    losses = steps(whole, 3)
    steps(begun, 2)
    resumed = session()
    resumed.restore(begun.adapter_tensors(), begun.optimizer_tensors())
    assert steps(resumed, 1) == losses[2:]
    for name, tensor in whole.adapter_tensors().items():
        assert np.array_equal(resumed.adapter_tensors()[name], tensor), name
