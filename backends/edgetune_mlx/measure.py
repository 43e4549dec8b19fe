"""How fast this machine does what a training step consists of, each alone."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from edgetune.device import Device
from edgetune.speed import Measurements, shortest_seconds, versions_of
from edgetune_mlx.matrices import PACKINGS
from edgetune_mlx.optimizer import AdamW
from edgetune_mlx.precision import multiplies_quantized


def measure(device: Device) -> Measurements:
    """Return the rates of this machine, the best of a few tries each."""
    # the processor's matrix products are a reference implementation
    side = 2048 if multiplies_quantized() else 256
    matrix = mx.random.normal((side, side), key=mx.random.key(0))
    stored = matrix.astype(mx.bfloat16)
    packed = PACKINGS["q4"].pack(stored)
    mx.eval(matrix, stored, packed)
    product_32bit, product_16bit = _product(matrix), _product(stored)
    return Measurements(
        device=device.name,
        versions=versions_of("mlx"),
        product_32bit=product_32bit,
        product_16bit=product_16bit,
        attention_32bit=product_32bit,  # attention is products here, in chunks of queries
        attention_16bit=product_16bit,
        pointwise=3 * matrix.nbytes / _seconds(lambda: matrix * matrix),
        convert=matrix.size / _seconds(lambda: stored.astype(mx.float32)),
        dequantize=matrix.size / _seconds(lambda: PACKINGS["q4"].dense(packed, mx.bfloat16)),
        optimizer=_optimizer(matrix),
        link_bandwidth=0.0,
    )


def _product(matrix: mx.array) -> float:
    """Return FLOP/s of a product as in a step: some hundred rows by a square matrix."""
    rows = matrix[: len(matrix) // 4]
    return float(2 * rows.size * len(matrix) / _seconds(lambda: rows @ matrix.T))


def _optimizer(matrix: mx.array) -> float:
    optimizer = AdamW({"x": matrix.size}, {"x": 1.0}, 0.0)
    trained = {"x": matrix}

    def update() -> mx.array:
        get, put = trained.__getitem__, trained.__setitem__
        optimizer.update(get, put, {"x": matrix}, 1.0, 1e-3, 1)
        return trained["x"]

    return float(matrix.size / _seconds(update))


def _seconds(work: Callable[[], mx.array]) -> float:
    """Return the shortest time that ``work`` took."""
    return shortest_seconds(lambda: mx.eval(work()))
