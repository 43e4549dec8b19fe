"""A prefix starts as what the base's own cache holds of a text, and so as that text in front of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from letters import BOS, with_letters
from models import FAMILIES, make_model
from numpy.typing import NDArray

from conformance.sessions import ROW, Bench, lesson, loss_of, step
from conformance.test_families import REFUSED
from edgetune.adapters import load_adapter, save_adapter
from edgetune.backend import Session
from edgetune.data import load_tokenizer
from edgetune.methods import build
from edgetune.methods.prefix import TEXT
from edgetune.model import LocalModel

SAYING = "Say what."
PREFIX = build("prefix", {"prefix_length": 7, "prefix_text": SAYING})
CLOSE = 5e-5


def tokens_of(model: LocalModel, text: str, length: int) -> list[int]:
    """Return a text's tokens, repeated or cut to a length."""
    own = load_tokenizer(model.folder).encode(text)
    return [own[i % len(own)] for i in range(length)]


def behind(session: Session, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return the base's logits of a row with tokens in front of it."""
    return session.logits([*tokens, *ROW], adapter=None)[len(tokens) :]


def cached(session: Session, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return what the base's cache holds of tokens, layer after layer keys and values (P, numbers)."""
    cache: Any = session.new_cache(None, len(tokens))
    session.read([(cache, tokens)])
    pairs = zip(cache.keys, cache.values, strict=True)
    held = (np.array(x.tolist(), np.float32) for pair in pairs for x in pair)
    flat = [x[0].transpose(1, 0, 2).reshape(len(tokens), -1) for x in held if x.size]
    return np.concatenate(flat, axis=1)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if "prefix" not in REFUSED.get(family, ())]
)
def test_every_family_begins_with_the_text_in_front(
    family: str, bench: Bench, tmp_path: Path
) -> None:
    model = LocalModel.open(with_letters(make_model(tmp_path, family)))
    session, tokens = bench.open(PREFIX, model), tokens_of(model, SAYING, 7)
    (found,) = session.adapter_tensors().values()
    np.testing.assert_allclose(found, cached(session, tokens), rtol=0, atol=CLOSE)
    if any(block.recurrent for block in model.shape.blocks):  # whose states would go on from it
        return
    expected = behind(session, tokens)
    np.testing.assert_allclose(session.logits(ROW), expected, rtol=0, atol=CLOSE)
    assert np.abs(session.logits(ROW, adapter=None) - expected).max() > 100 * CLOSE


@pytest.mark.parametrize("kind", ["prefix", "mam"])
@pytest.mark.parametrize("length", [5, 200])
def test_a_text_of_the_project_is_the_default(
    kind: str, length: int, bench: Bench, tmp_path: Path
) -> None:
    """It is cut, or repeated, to the length."""
    folder = make_model(tmp_path, "llama", max_position_embeddings=256)
    model = LocalModel.open(with_letters(folder))
    session = bench.open(build(kind, {"prefix_length": length}), model)
    assert 5 < len(load_tokenizer(folder).encode(TEXT)) < 200
    expected = behind(session, tokens_of(model, TEXT, length))
    np.testing.assert_allclose(session.logits(ROW), expected, rtol=0, atol=CLOSE)


def test_it_begins_as_texts_begin_for_the_tokenizer(bench: Bench, tmp_path: Path) -> None:
    folder = with_letters(make_model(tmp_path, "llama"), adds_bos=True)
    model = LocalModel.open(folder)
    session = bench.open(build("prefix", {"prefix_length": 12, "prefix_text": SAYING}), model)
    expected = behind(session, [BOS, *tokens_of(model, SAYING, 11)])
    np.testing.assert_allclose(session.logits(ROW), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("places", ["checkpointed", "streamed", "offloaded"])
def test_it_is_the_same_wherever_blocks_are(places: str, bench: Bench, llama: LocalModel) -> None:
    found = [bench.open(PREFIX, llama, **knobs) for knobs in ({}, bench.ways.places[places])]
    (here,), (there,) = (session.adapter_tensors().values() for session in found)
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("bits", ["8-bit", "4-bit"])
def test_it_is_that_of_the_quantized_base(bits: str, bench: Bench, wide: LocalModel) -> None:
    with_letters(wide.folder)
    session = bench.open(PREFIX, wide, quantization=bench.ways.formats[bits])
    expected = behind(session, tokens_of(wide, SAYING, 7))
    np.testing.assert_allclose(session.logits(ROW), expected, rtol=0, atol=2 * CLOSE)


def test_it_is_as_exact_as_the_numbers_that_are_computed_with(
    bench: Bench, llama: LocalModel
) -> None:
    session = bench.open(PREFIX, llama, compute_dtype="bfloat16")
    (found,) = session.adapter_tensors().values()
    assert not (np.ascontiguousarray(found).view(np.uint32) & 0xFFFF).any()
    assert np.isfinite(session.logits(ROW)).all()


def test_seeds_change_nothing(bench: Bench, llama: LocalModel) -> None:
    found = [bench.open(PREFIX, llama, seed=seed).adapter_tensors() for seed in (0, 1)]
    for name, x in found[0].items():
        np.testing.assert_array_equal(x, found[1][name])


def test_what_is_saved_is_read_without_the_text(
    bench: Bench, llama: LocalModel, tmp_path: Path
) -> None:
    session, batch = bench.open(PREFIX, llama), lesson()
    before = loss_of(session, batch)
    step(session, batch, rate=0.1)
    assert loss_of(session, batch) < before
    save_adapter(tmp_path, PREFIX, llama.shape, session.adapter_tensors(), base="tiny")
    loaded = load_adapter(tmp_path, llama.shape)
    assert loaded.method == PREFIX.on_disk()
    other = bench.open(loaded.method, llama)
    other.restore(loaded.tensors)
    np.testing.assert_array_equal(other.logits(ROW), session.logits(ROW))
