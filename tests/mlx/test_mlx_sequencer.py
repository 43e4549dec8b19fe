"""Matrices that are made to multiply with exist one after the other, and derivatives by hand."""

from __future__ import annotations

import mlx.core as mx
import pytest

from edgetune_mlx.linear import frozen_linear
from edgetune_mlx.matrices import Matrix, Sequencer, packing_of
from edgetune_mlx.pointwise import activation, gated_activation, plain_activation

WIDTH, TOKENS = 512, 8


def test_the_matrices_of_a_chain_of_products_are_not_made_at_once() -> None:
    packing = packing_of("q8")
    keys = mx.random.split(mx.random.key(0), 12)
    matrices = [
        Matrix(packing, packing.pack(mx.random.normal((WIDTH, WIDTH), key=k))) for k in keys
    ]
    x = mx.random.normal((TOKENS, WIDTH), key=mx.random.key(1))
    mx.eval(x, *[part for matrix in matrices for part in matrix.parts.values()])
    one = 4 * WIDTH * WIDTH

    def peak(sequencer: Sequencer | None) -> tuple[float, mx.array]:
        each = [m if sequencer is None else m.serialized(sequencer) for m in matrices]

        def beside(x: mx.array) -> mx.array:
            return sum((mx.tanh(frozen_linear(x, matrix, None)) for matrix in each), mx.array(0.0))

        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        limit = mx.set_memory_limit(before + one)
        try:
            found = mx.vjp(beside, [x], [x])[1][0]
            mx.eval(found)
        finally:
            mx.set_memory_limit(limit)
        return (mx.get_peak_memory() - before) / one, found

    without, expected = peak(None)
    within, found = peak(Sequencer())

    assert mx.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert without > 6
    assert within < 3


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu"])
def test_derivatives_by_hand_are_those_of_mlx(name: str) -> None:
    keys = mx.random.split(mx.random.key(0), 3)
    gate, up, grad = (3 * mx.random.normal((5, 7), key=key) for key in keys)

    plain = mx.vjp(lambda x: plain_activation(x, name), [gate], [grad])[1]
    gated = mx.vjp(lambda gate, up: gated_activation(gate, up, name), [gate, up], [grad])[1]

    own = mx.vjp(lambda x: activation(x, name), [gate], [grad])[1]
    both = mx.vjp(lambda gate, up: activation(gate, name) * up, [gate, up], [grad])[1]
    for found, expected in zip([*plain, *gated], [*own, *both], strict=True):
        assert mx.allclose(found, expected, rtol=1e-5, atol=1e-5)
