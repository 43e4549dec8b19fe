"""The projection of an intrinsic dimension: orthogonal in expectation, and what it says of a curve."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetune.errors import UsageError
from edgetune.methods import build, initial_value
from edgetune.methods.intrinsic import VECTOR, Intrinsic, hadamard
from edgetune.model.families import shape_of
from edgetune.workflows.dimension import DimensionRequest, Point, intrinsic_dimension, smallest
from edgetune.workflows.over import Over

SHAPE = shape_of(
    {
        "model_type": "llama", "vocab_size": 50, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    }
)  # fmt: skip
METHOD = Intrinsic(dimension=16)
SEEDS = 200


def projection(seed: int) -> NDArray[np.float32]:
    """Return the projection (D, d) of a seed: column i is what all weights move by for e_i."""
    tensors = {x.name: initial_value(x, seed) for x in METHOD.tensors(SHAPE)}
    columns = []
    for unit in np.eye(METHOD.dimension, dtype=np.float32):
        own = tensors | {VECTOR: unit}
        moved = [METHOD.moved(SHAPE, target, own).ravel() for target in METHOD.select(SHAPE)]
        columns.append(np.concatenate(moved))
    return np.stack(columns, 1)


def test_the_transform_is_that_of_hadamard() -> None:
    matrix = np.ones((1, 1))
    for _ in range(4):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    x = np.random.default_rng(0).normal(size=(3, 16))
    np.testing.assert_allclose(hadamard(x), x @ matrix, atol=1e-12)


def test_the_projection_is_orthogonal_in_expectation() -> None:
    found = np.stack([(p := projection(seed)).T @ p for seed in range(SEEDS)]).astype(np.float64)
    mean, error = found.mean(0), found.std(0) / np.sqrt(SEEDS)
    expected = np.eye(METHOD.dimension)

    assert np.abs(mean - expected).max() < 0.05
    assert (np.abs(mean - expected) <= 5 * error + 1e-9).all(), "nothing but chance"
    assert np.abs(found[0] - expected).max() > 0.02, "one projection alone is not"


def test_targets_and_seeds_have_projections_of_their_own() -> None:
    every, size = [projection(seed).ravel() for seed in range(40)], 16 * SHAPE.hidden_size**2
    ends = [np.corrcoef(whole[:size], whole[-size:])[0, 1] for whole in every]
    seeds = [np.corrcoef(*pair)[0, 1] for pair in pairwise(every)]
    for found in (ends, seeds):
        assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))


def test_a_dimension_is_a_power_of_two() -> None:
    assert build("intrinsic", {"dimension": 64}).parameters(SHAPE) == 64 + SHAPE.layers
    with pytest.raises(UsageError, match=r"power of two; found 100\. 64 and 128 are the nearest"):
        build("intrinsic", {"dimension": 100})


def test_the_dimension_is_the_first_that_reaches_the_share() -> None:
    points = [Point(dimension=d, parameters=d, loss=1.0, share=s) for d, s in ((4, 0.2), (8, 0.91))]
    assert (smallest(points, 0.9), smallest(points, 0.95)) == (8, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimensions": (64, 16)}, "rising numbers"),
        ({"dimensions": (64,)}, "at least two"),
        ({"dimensions": (64, 100)}, "power of two"),
        ({"share": 1.0}, "between 0 and 1"),
        ({"over": Over()}, "Give --model"),
        (
            {"training": {"steps": 100_001}},
            "at most 100,000: each of the 7 trainings takes so many",
        ),
        ({"training": {"steps": 10**400}}, "at most 100,000"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(settings: dict[str, object], message: str) -> None:
    request = {"data": Path("rows.jsonl"), "over": Over(model="tiny")} | settings
    with pytest.raises(UsageError, match=message):
        intrinsic_dimension(DimensionRequest(**request), lambda *_: None)  # type: ignore[arg-type]
