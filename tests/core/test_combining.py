"""Adapters made into one: exact sums, what takes part in the others, and the search for weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from adapters import random_adapter

from edgetune.adapters import LoadedAdapter, load_adapter, save_adapter
from edgetune.combining import How, Recipe, combined, minimise
from edgetune.combining.sparse import drawn, elected, largest
from edgetune.errors import UsageError
from edgetune.methods import build
from edgetune.methods.initial import generator
from edgetune.methods.lora import LowRank
from edgetune.methods.targets import Target
from edgetune.methods.vera import Vera
from edgetune.model.families import shape_of

SHAPE = shape_of(
    {
        "model_type": "llama", "vocab_size": 50, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    }
)  # fmt: skip
WEIGHTS = (0.7, -0.4)


def adapter(seed: int, **settings: Any) -> LoadedAdapter:
    return random_adapter(build("lora", {"rank": 2, **settings}), SHAPE, seed)


def updates(one: LoadedAdapter) -> dict[str, Any]:
    """Return what an adapter adds to each matrix."""
    method = one.method
    if isinstance(method, Vera):
        return {target.module: _vera(one, target) for target in method.select(SHAPE)}
    assert isinstance(method, LowRank)
    return {
        target.module: method.scale_of(target)
        * one.tensors[f"{target.module}.lora_B.weight"].astype(np.float64)
        @ one.tensors[f"{target.module}.lora_A.weight"]
        for target in method.select(SHAPE)
    }


def _vera(one: LoadedAdapter, target: Target) -> Any:
    inner, outer = (one.tensors[f"{target.module}.vera_lambda_{part}"] for part in "db")
    a = one.tensors["vera_A"][:, : target.linear.inputs].astype(np.float64)
    b = one.tensors["vera_B"][: target.linear.outputs].astype(np.float64)
    return np.diag(outer) @ b @ np.diag(inner) @ a


def summed(adapters: Sequence[LoadedAdapter], weights: Sequence[float]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for one, weight in zip(adapters, weights, strict=True):
        for name, update in updates(one).items():
            total[name] = total.get(name, 0) + weight * update
    return total


def made(adapters: Sequence[LoadedAdapter], how: How, **settings: Any) -> LoadedAdapter:
    weights = settings.pop("weights", WEIGHTS)
    names = [f"adapter-{place}" for place in range(len(adapters))]
    return combined(adapters, SHAPE, Recipe(how=how, weights=weights, **settings), names)


OTHERS = [
    adapter(1),
    adapter(1, rank=5, alpha=3.0, rslora=True),
    adapter(1, targets=("mlp",), layers=1),
    adapter(1, rank_pattern=("q_proj=3",), alpha_pattern=("down_proj=1",)),
    random_adapter(build("vera", {"vera_rank": 5}), SHAPE, 1),
]


@pytest.mark.parametrize("how", ["cat", "task-arithmetic"])
@pytest.mark.parametrize("other", OTHERS)
def test_sums_are_exact_and_survive_the_file(
    tmp_path: Path, how: How, other: LoadedAdapter
) -> None:
    both = [adapter(0), other]
    found = made(both, how)
    save_adapter(tmp_path, found.method, SHAPE, found.tensors, base="base")

    expected = summed(both, WEIGHTS)
    for one in (found, load_adapter(tmp_path, SHAPE)):
        assert updates(one).keys() == expected.keys()
        for name, update in updates(one).items():
            np.testing.assert_allclose(update, expected[name], rtol=0, atol=1e-6)


def test_svd_is_exact_at_the_rank_of_all_and_the_nearest_below() -> None:
    both = [adapter(0), adapter(1, rank=3)]
    expected = summed(both, WEIGHTS)

    for name, update in updates(made(both, "svd", rank=5)).items():
        np.testing.assert_allclose(update, expected[name], rtol=0, atol=1e-6)
    for name, update in updates(made(both, "svd", rank=2)).items():
        u, s, v = np.linalg.svd(expected[name])
        np.testing.assert_allclose(update, u[:, :2] * s[:2] @ v[:2], rtol=0, atol=1e-6)


def test_an_adapter_without_itself_is_nothing() -> None:
    one = adapter(0)

    for update in updates(made([one, one], "task-arithmetic", weights=(1.0, -1.0))).values():
        np.testing.assert_allclose(update, 0, atol=1e-7)


@pytest.mark.parametrize("how", ["linear", "ties", "dare_ties", "dare_linear"])
def test_other_ranks_are_refused_where_numbers_are_added_one_by_one(how: How) -> None:
    with pytest.raises(UsageError, match="needs one rank"):
        made([adapter(0), adapter(1, rank=3)], how)


def test_dare_drops_what_its_seed_says_and_scales_the_rest() -> None:
    both = [adapter(0), adapter(1)]
    found = made(both, "dare_linear", density=0.25, seed=3)
    name = "model.layers.0.self_attn.q_proj"

    expected = np.zeros((2, 8))
    for place, (one, weight) in enumerate(zip(both, WEIGHTS, strict=True)):
        a = one.tensors[f"{name}.lora_A.weight"]
        kept = generator(f"{name}.A.{place}", 3).random(a.shape, np.float32) < 0.25
        expected += np.sign(weight) * np.sqrt(abs(2 * weight)) * kept * a / 0.25
    np.testing.assert_allclose(found.tensors[f"{name}.lora_A.weight"], expected, atol=1e-6)


def test_what_is_dropped_is_made_up_for() -> None:
    tensor = np.ones((400, 400), np.float32)
    thinned = drawn(tensor, 0.3, np.random.default_rng(0))

    assert np.mean(thinned != 0) == pytest.approx(0.3, abs=0.01)
    assert thinned.mean() == pytest.approx(1, abs=0.03)


def test_the_majority_of_the_largest_decides() -> None:
    one = np.array([3.0, -2.0, 0.1, 0.5], np.float32)
    other = np.array([-1.0, -4.0, 0.2, 0.4], np.float32)
    kept = [largest(one, 0.5), largest(other, 0.5)]

    np.testing.assert_array_equal(kept, [[3, -2, 0, 0], [-1, -4, 0, 0]])
    # 3 against -1: 3 alone; -2 and -4: the mean of their weighted values; nothing; nothing
    np.testing.assert_allclose(elected(kept, (0.5, 2.0)), [1.5, (-1 - 8) / 2, 0, 0])


def test_only_sums_are_combined() -> None:
    other = random_adapter(build("dora", {"rank": 2}), SHAPE)
    with pytest.raises(UsageError, match="adapter-1 is an adapter of the method dora"):
        made([adapter(0), other], "cat")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"how": "cat", "density": 0.5}, "density"),
        ({"how": "ties", "density": 0.0}, "density"),
        ({"how": "linear", "rank": 4}, "rank"),
        ({"how": "svd", "rank": 0}, "rank"),
        ({"how": "ties", "seed": 1}, "seed"),
        ({"how": "cat", "weights": (0.0, 0.0)}, "weights"),
        ({"how": "cat", "weights": (float("nan"), 1.0)}, "weights"),
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Recipe(**{"weights": WEIGHTS, **settings})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", get_args(How))
@pytest.mark.parametrize("weights", [(1e308, 1e308), (1e308, -1e308), (-1e300, 1e-300)])
def test_what_is_too_large_for_float32_is_refused(how: How, weights: tuple[float, float]) -> None:
    with pytest.raises(
        UsageError, match=rf"--how {how} .* too large for float32, or none. Give sma"
    ):
        made([adapter(1), adapter(2)], how, weights=weights)


def test_the_search_finds_a_minimum_within_its_bound_and_its_number() -> None:
    tried: list[Any] = []

    def bowl(point: Any) -> float:
        tried.append(point)
        return float(((point - np.array([0.6, -0.9, 5.0])) ** 2).sum())

    corners = [(0.0,) * 3, (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)]
    found = minimise(bowl, corners, evaluations=200, bound=1.5, tolerance=1e-6)
    np.testing.assert_allclose(found.point, [0.6, -0.9, 1.5], atol=5e-3)
    assert found.evaluations == len(tried) <= 200
    assert np.abs(tried).max() <= 1.5

    few = minimise(bowl, corners, evaluations=6, bound=1.5)
    assert few.evaluations == 6
    assert few.value <= min(map(bowl, map(np.array, corners)))
