"""DoRA: LoRA's direction, normalised by row, times a trained magnitude."""

from __future__ import annotations

import mlx.core as mx

from edgetune.shape import Linear
from edgetune_mlx.linear import frozen_linear, low_rank, recomputed
from edgetune_mlx.matrices import Matrix
from edgetune_mlx.methods.lora import Key, LowRankAdaptation


class DoraAdaptation(LowRankAdaptation):
    """``m / |W + scale * B A| * (W + scale * B A) x``, the norm a constant (section 4.3)."""

    def project(
        self, layer: int, linear: Linear, x: mx.array, matrix: Matrix, bias: mx.array | None
    ) -> mx.array:
        """Return the projection, with direction and magnitude adapted where it is a target."""
        key = (layer, linear.role)
        if key not in self.modules:
            return frozen_linear(x, matrix, bias)
        update = low_rank(x, *self.pair(key), self.low_rank.scale, self.dropout(key))
        y = frozen_linear(x, matrix, None) + update
        magnitude = self.parameters[f"{self.modules[key]}.lora_magnitude_vector"]
        y = recomputed(_scaled)(y, magnitude / self._norm(key, matrix))
        return y if bias is None else y + bias.astype(y.dtype)

    def _norm(self, key: Key, matrix: Matrix) -> mx.array:
        """Return the norms (N) of the rows of ``W + scale * B A`` without forming ``B A``.

        ``|W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>`` by row.
        """
        a, b = (mx.stop_gradient(x) for x in self.pair(key))
        dense, scale = matrix.dense(mx.float32), self.low_rank.scale
        cross = ((dense @ a.T) * b).sum(1)
        own = ((b @ (a @ a.T)) * b).sum(1)
        squares = dense.square().sum(1) + 2 * scale * cross + scale**2 * own
        return mx.sqrt(mx.maximum(squares, 0))


def _scaled(y: mx.array, factor: mx.array) -> mx.array:
    return y * factor.astype(y.dtype)
