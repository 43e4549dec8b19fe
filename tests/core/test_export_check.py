"""The check of a merge: right figures, and a refusal that says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetune.errors import CheckFailedError, UsageError
from edgetune.exporters.check import LIMITS, MergeCheck, compare, require

ROWS = [[1, 2, 3], list(range(150)), [], [4]]
GOOD = MergeCheck(kl_mean=1e-4, kl_max=1e-2, top1_agreement=0.999, rows=3, tokens=154)


class Model:
    """Logits that depend on the tokens, shifted by noise."""

    def __init__(self, noise: float = 0.0, shift: float = 0.0) -> None:
        self.noise, self.shift = noise, shift

    def __call__(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        draw = np.random.default_rng(len(tokens))
        logits, noise = draw.normal(size=(2, len(tokens), 30))
        found: NDArray[np.float32] = logits * 3 + noise * self.noise + self.shift
        return found.astype(np.float32)


def _probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    exponentials = np.exp(logits.astype(np.float64))
    result: NDArray[np.float64] = exponentials / exponentials.sum(-1, keepdims=True)
    return result


def test_the_figures_are_those_of_the_definition() -> None:
    p = np.concatenate([_probabilities(Model()(row)) for row in ROWS])
    q = np.concatenate([_probabilities(Model(0.5)(row)) for row in ROWS])
    kl = (p * np.log(p / q)).sum(-1)
    check = compare(Model(), Model(0.5), ROWS)

    assert (check.rows, check.tokens) == (3, 154)
    assert check.kl_mean == pytest.approx(kl.mean())
    assert check.kl_max == pytest.approx(kl.max())
    assert check.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())


def test_equal_distributions_pass() -> None:
    check = compare(Model(), Model(shift=1000.0), ROWS)
    require(check)

    assert check.kl_max == pytest.approx(0, abs=1e-6)
    assert check.top1_agreement == 1


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, kl_mean=2 * LIMITS.kl_mean),
        replace(GOOD, kl_max=2 * LIMITS.kl_max),
        replace(GOOD, top1_agreement=0.5),
        replace(GOOD, kl_mean=float("nan")),
    ],
)
def test_a_figure_beyond_its_limit_fails(bad: MergeCheck) -> None:
    require(GOOD)
    with pytest.raises(CheckFailedError, match=r"154 tokens of 3 rows.*--dtype float32") as failure:
        require(bad)
    assert failure.value.exit_code == 8


def test_the_loss_of_a_small_effect_is_found() -> None:
    rows = [list(range(200))]
    lost = compare(Model(), Model(0.1), rows, base=Model(0.1))
    lost = replace(lost, top1_agreement=1.0)
    kept = compare(Model(), Model(0.01), rows, base=Model(0.1))
    require(replace(lost, effect=None))
    require(kept)

    assert lost.effect == lost.kl_mean
    assert LIMITS.noise < lost.kl_mean < LIMITS.kl_mean
    with pytest.raises(CheckFailedError):
        require(lost)


def test_noise_is_not_taken_for_a_lost_adapter() -> None:
    require(replace(GOOD, kl_mean=0.9 * LIMITS.noise, effect=LIMITS.noise))


def test_logits_that_are_not_numbers_fail() -> None:
    def broken(tokens: Sequence[int]) -> NDArray[np.float32]:
        return np.full((len(tokens), 30), np.nan, np.float32)

    with pytest.raises(CheckFailedError):
        require(compare(Model(), broken, ROWS))


def test_no_rows_are_no_check() -> None:
    with pytest.raises(UsageError, match="there is none"):
        compare(Model(), Model(), [[]])
