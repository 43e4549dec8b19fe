"""Gemma 3n's sparse gate lets through what is above a bound that is not rounded."""

from __future__ import annotations

from statistics import NormalDist

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune_mlx.altup import above


def test_the_bound_is_exact_in_bfloat16() -> None:
    deviations = NormalDist().inv_cdf(0.95)
    x = mx.random.normal((4, 4096), key=mx.random.key(0)).astype(mx.bfloat16)
    found = np.array(above(x, deviations).astype(mx.float32), np.float64)

    np.testing.assert_allclose(found, _above(x, deviations), rtol=2**-8, atol=1e-5)
    rounded = mx.array(deviations).astype(mx.bfloat16).item()
    assert np.abs(found - _above(x, rounded)).max() > 3e-3


def _above(x: mx.array, deviations: float) -> NDArray[np.float64]:
    wide = np.array(x.astype(mx.float32), np.float64)
    bound = wide.mean(-1, keepdims=True) + deviations * wide.std(-1, keepdims=True)
    return np.maximum(wide - bound, 0)
