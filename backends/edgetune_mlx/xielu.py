"""xIELU, the activation of Apertus (Huang & Schlag 2024): squares above zero, less than linear below.

x > 0:   alpha_p x^2 + beta x
x <= 0:  alpha_n (e^min(x, eps) - 1 - x) + beta x
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx


def xielu(x: mx.array, stored: Mapping[str, mx.array]) -> mx.array:
    """Return the activation of x by a block's numbers as they are stored: alphas before softplus."""
    custom: Any = mx.custom_function(_value)

    @custom.vjp  # type: ignore[untyped-decorator]
    def backward(primals: Any, cotangent: mx.array, _: Any) -> tuple[mx.array, ...]:
        x, *numbers = primals
        (x,) = mx.depends([x], [cotangent])
        return _slope(x, *numbers) * cotangent, *map(mx.zeros_like, numbers)

    beta = stored["beta"].astype(mx.float32)
    alpha_n = mx.logaddexp(stored["alpha_n"].astype(mx.float32), 0.0) + beta
    alpha_p = mx.logaddexp(stored["alpha_p"].astype(mx.float32), 0.0)
    numbers = (alpha_p, alpha_n, beta, stored["eps"])
    out: mx.array = custom(x, *(number.astype(x.dtype) for number in numbers))
    return out


def _value(
    x: mx.array, alpha_p: mx.array, alpha_n: mx.array, beta: mx.array, eps: mx.array
) -> mx.array:
    below = (mx.expm1(mx.minimum(x, eps)) - x) * alpha_n
    return mx.where(x > 0, mx.square(x) * alpha_p, below) + x * beta


def _slope(
    x: mx.array, alpha_p: mx.array, alpha_n: mx.array, beta: mx.array, eps: mx.array
) -> mx.array:
    below = mx.where(x < eps, mx.expm1(x), -1) * alpha_n
    return mx.where(x > 0, x * (2 * alpha_p), below) + beta
