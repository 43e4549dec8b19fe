"""Tokens that are drawn come as often as they are probable, from the most probable ones alone."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.backend import GenerateOptions
from edgetune.sampling import choose

PROBABILITIES = np.array([0.1, 0.4, 0.0, 0.2, 0.3])
with np.errstate(divide="ignore"):
    LOGITS = (np.log(PROBABILITIES) + 7).astype(np.float32)
DRAWS = 4_000


def drawn(**options: float) -> list[float]:
    """Return how often each token is drawn."""
    draws = np.random.default_rng(1)
    found = [choose(LOGITS, GenerateOptions(**options), draws) for _ in range(DRAWS)]  # type: ignore[arg-type]
    return [found.count(token) / DRAWS for token in range(len(LOGITS))]


def test_the_most_probable_token_is_taken_without_a_temperature() -> None:
    assert drawn(temperature=0.0)[1] == 1.0
    assert drawn(temperature=1e-6)[1] == 1.0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        ({"temperature": 1.0, "top_p": 0.7}, [0, 4 / 7, 0, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.71}, [0, 4 / 9, 0, 2 / 9, 3 / 9]),
        ({"temperature": 1.0, "top_p": 1e-6}, [0, 1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_probabilities(options: dict[str, float], expected: list[float]) -> None:
    np.testing.assert_allclose(drawn(**options), expected, atol=0.03)
    assert drawn(**options)[2] == 0


def test_the_same_seed_draws_the_same() -> None:
    options = GenerateOptions(temperature=1.0)
    one, other = (
        [choose(LOGITS, options, np.random.default_rng(s)) for s in range(50)] for _ in "ab"
    )
    assert one == other
    assert len(set(one)) > 2
