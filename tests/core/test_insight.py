"""Norms, singular values, words and likeness against the full matrices that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adapters import random_adapter

from edgetune.adapters import LoadedAdapter
from edgetune.insight import inner, likeness, nearest_tokens, spectrum, updates
from edgetune.methods import METHODS, build
from edgetune.methods.merging import LowRankUpdate
from edgetune.model.families import shape_of

SHAPE = shape_of(
    {
        "model_type": "llama", "vocab_size": 50, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    }
)  # fmt: skip


def adapter(kind: str, seed: int = 0, **settings: Any) -> LoadedAdapter:
    return random_adapter(build(kind, settings).on_disk(), SHAPE, seed)


def full(update: LowRankUpdate) -> Any:
    return update.scale * update.left.astype(np.float64) @ update.right


@pytest.mark.parametrize("kind", ["lora", "dora", "vera"])
def test_singular_values_are_those_of_the_full_update(kind: str) -> None:
    one = adapter(kind, **({"vera_rank": 5} if kind == "vera" else {"rank": 3, "alpha": 2.0}))
    found = updates(one, SHAPE)
    assert found is not None

    for update in found.values():
        expected = np.linalg.svd(full(update), compute_uv=False)
        seen = spectrum(update)
        count = min(len(seen.values), len(expected))
        np.testing.assert_allclose(seen.values[:count], expected[:count], atol=1e-9)
        assert seen.norm == pytest.approx(np.linalg.norm(full(update)))
        assert 1 <= seen.effective_rank <= len(seen.values)


def test_the_effective_rank_counts_equal_values() -> None:
    eye = np.eye(6, dtype=np.float32)

    assert spectrum(LowRankUpdate(eye[:, :4], eye[:4], 0.5)).effective_rank == pytest.approx(4)
    assert spectrum(LowRankUpdate(eye[:, :4], 0 * eye[:4], 0.5)).effective_rank == 0


def test_likeness_is_the_cosine_of_the_full_updates() -> None:
    one, other = adapter("lora", rank=3), adapter("lora", 1, rank=2, targets=("mlp",))
    mine, theirs = updates(one, SHAPE), updates(other, SHAPE)
    assert mine is not None
    assert theirs is not None
    product = sum(float((full(mine[x]) * full(theirs[x])).sum()) for x in theirs)
    norms = [sum(np.square(full(x)).sum() for x in found.values()) for found in (mine, theirs)]

    expected = product / np.sqrt(norms[0] * norms[1])
    assert likeness(one, other, SHAPE) == pytest.approx(expected, abs=1e-9)
    target = next(iter(theirs))
    assert inner(mine[target], mine[target]) == pytest.approx(np.square(full(mine[target])).sum())


@pytest.mark.parametrize("kind", METHODS)
def test_an_adapter_is_like_itself_and_unlike_its_opposite(kind: str) -> None:
    one = adapter(kind)
    negated = LoadedAdapter(
        method=one.method,
        tensors={n: x if "lora_A" in n or "vera_" in n[:5] else -x for n, x in one.tensors.items()},
        base=None,
    )

    assert likeness(one, one, SHAPE) == pytest.approx(1)
    if kind != "vera":  # whose update has both vectors as factors
        assert likeness(one, negated, SHAPE) == pytest.approx(-1)
    assert abs(likeness(one, adapter(kind, seed=1), SHAPE) or 0) < 0.9


def test_what_has_nothing_in_common_is_not_compared() -> None:
    assert likeness(adapter("prompt"), adapter("lora"), SHAPE) is None
    assert likeness(adapter("bitfit"), adapter("bitfit", targets=("mlp",)), SHAPE) is None
    assert likeness(adapter("prompt"), adapter("prompt", 1, prompt_length=3), SHAPE) is not None


def test_the_nearest_tokens_are_those_of_the_whole_table() -> None:
    draw = np.random.default_rng(0)
    table = draw.normal(size=(37, 8)).astype(np.float16)
    table[3] = 0
    prompt = np.concatenate([2 * table[[5, 20]], draw.normal(size=(3, 8))]).astype(np.float32)
    found = nearest_tokens(prompt, [table[:10], table[10:36], table[36:]], 4)

    wide = table.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    cosines = prompt @ wide.T / np.where(norms == 0, 1, norms)
    cosines /= np.linalg.norm(prompt, axis=1)[:, None]
    order = np.argsort(-cosines, axis=1)[:, :4]
    assert [[x.token for x in row] for row in found] == order.tolist()
    assert [row[0].token for row in found[:2]] == [5, 20]
    expected = np.take_along_axis(cosines, order, 1)
    np.testing.assert_allclose([[x.cosine for x in row] for row in found], expected, atol=1e-5)
