"""The norm of many gradients, against a sum in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from edgetune_mlx.optimizer import PIECE, clipping

MANY = 30_000_000


def gradients(*shapes: tuple[int, ...]) -> tuple[dict[str, mx.array], float]:
    """Return gradients of these shapes, and their norm in float64, a part at a time."""
    draw, found, total = np.random.default_rng(0), {}, 0.0
    for shape in shapes:
        numbers = draw.standard_normal(shape, np.float32) * np.float32(1e-3)
        for part in np.array_split(numbers.reshape(-1), max(1, numbers.size >> 20)):
            total += float(np.square(part.astype(np.float64)).sum())
        found[str(shape)] = mx.array(numbers)
    return found, float(np.sqrt(total))


@pytest.mark.parametrize(
    "shapes",
    [
        [(MANY,)],
        [(6000, 5000)],
        [(2, MANY // 2)],
        [(PIECE,), (PIECE + 1,), (PIECE - 1,), (3, PIECE), (2, 3, 5), (1,)],
    ],
    ids=str,
)
def test_the_norm_is_that_of_a_sum_in_float64(shapes: list[tuple[int, ...]]) -> None:
    grads, expected = gradients(*shapes)
    clip, norm = clipping(grads, 1e-3)
    assert norm == pytest.approx(expected, rel=1e-5)
    assert clip == pytest.approx(min(1.0, 1e-3 / (expected + 1e-6)), rel=1e-5)


def test_a_transposed_gradient_counts_alike() -> None:
    grads, expected = gradients((300, 700))
    (name,) = grads
    assert clipping({name: grads[name].T}, 1.0)[1] == pytest.approx(expected, rel=1e-6)
    assert clipping({name: mx.zeros((3,))}, 1.0) == (1.0, 0.0)


def test_what_is_not_finite_has_no_finite_norm() -> None:
    for bad in (float("nan"), float("inf")):
        assert not np.isfinite(clipping({"a": mx.array([1.0, bad])}, 1.0)[1])
