"""Prefix tuning: trained keys and values before those of every document.

B rows, S positions, H heads, G key/value heads, P length of the prefix, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import mlx.core as mx

from edgetune.methods.prefix import Prefix
from edgetune.methods.prompt import NAME
from edgetune.shape import ModelShape
from edgetune_mlx.adaptation import Adapted, Attended


class PrefixAdaptation(Adapted):
    """Attends to the prefix and the tokens at once: every document sees the same keys before."""

    def __init__(self, spec: Prefix, shape: ModelShape, parameters: Mapping[str, mx.array]) -> None:
        """Take the tensors that ``spec`` names for a model of this shape."""
        super().__init__(spec, shape, parameters)
        self._length = spec.length

    def everywhere(self, name: str) -> bool:
        """Return whether a tensor is the prefix's: one holds the numbers of all layers."""
        return name == NAME or name.startswith("prefix.")

    def attend(self, attended: Attended) -> mx.array:
        """Return the output (B, H, S, h) of the tokens' queries."""
        k, v = self._keys_values(attended.layer, attended.q.dtype)
        return replace(
            attended,
            k=_preceded(attended.k, k),
            v=_preceded(attended.v, v),
            keys=replace(attended.keys, before=self._length),
        ).out()

    def _keys_values(self, layer: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Return the prefix's keys and values of a layer, (1, G, P, h) each."""
        heads, size = self.shape.kv_heads, self.shape.head_dim
        span = slice(2 * layer * heads * size, 2 * (layer + 1) * heads * size)
        flat = self._values(span).astype(dtype).reshape(self._length, 2, heads, size)
        both = flat.transpose(1, 2, 0, 3)[:, None]
        return both[0], both[1]

    def _values(self, span: slice) -> mx.array:
        """Return some of the numbers (P, width) that a prefix consists of."""
        if NAME in self.parameters:
            return self.parameters[NAME][:, span]
        inner = self.parameters["prefix.embedding"] @ self.parameters["prefix.inner.weight"].T
        inner = mx.tanh(inner + self.parameters["prefix.inner.bias"])
        outer = inner @ self.parameters["prefix.outer.weight"][span].T
        return outer + self.parameters["prefix.outer.bias"][span]


def _preceded(x: mx.array, before: mx.array) -> mx.array:
    """Return x (B, G, S, h) with ``before`` (1, G, P, h) in front of each row."""
    return mx.concatenate([mx.broadcast_to(before, (len(x), *before.shape[1:])), x], axis=2)
