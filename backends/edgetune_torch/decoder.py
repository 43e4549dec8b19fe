"""The forward pass of every decoder: one block that reads the model's shape.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head, F FFN.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgetune.shape import ModelShape, Rotary
from edgetune_torch.adaptation import Adaptation
from edgetune_torch.attention import Documents, attend, causal
from edgetune_torch.load import BlockWeights, Weights
from edgetune_torch.pointwise import activation, gated_activation, norm, rotate
from edgetune_torch.rotary import cos_sin


@dataclass(slots=True)
class Cache:
    """Keys and values of one generated row, (1, G, capacity, h) a layer, filled to ``length``."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0


@dataclass(slots=True, kw_only=True)
class Place:
    """Where the tokens of a micro-batch stand: positions (B, S) and documents a row."""

    positions: Tensor
    documents: Documents
    dtype: torch.dtype
    context: int
    cache: Cache | None = None
    _tables: dict[Rotary, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def cos_sin(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Return the rotation of these positions, computed once for all layers."""
        if rotary not in self._tables:
            self._tables[rotary] = cos_sin(rotary, self.positions, self.dtype, self.context)
        return self._tables[rotary]


class Decoder:
    """A frozen model, one block at a time; an adaptation joins in at its places."""

    def __init__(self, shape: ModelShape, weights: Weights, dtype: torch.dtype) -> None:
        """Compute in ``dtype`` with the given weights."""
        self.shape = shape
        self.weights = weights
        self.dtype = dtype

    def embed(self, tokens: Tensor, place: Place) -> Tensor:
        """Return the input of the first block (B, S, D) for tokens (B, S)."""
        x = self.weights.embedding[tokens].to(self.dtype)
        if self.shape.embedding_scale != 1.0:
            # transformers rounds this factor to the model's own number format
            stored = self.weights.embedding.dtype
            x = x * float(torch.tensor(self.shape.embedding_scale, dtype=stored))
        if self.weights.positions is not None:
            x = x + self.weights.positions[place.positions].to(self.dtype)
        return x

    def block(self, layer: int, x: Tensor, place: Place, method: Adaptation) -> Tensor:
        """Return the output of one block (B, S, D)."""
        weights = self.weights.blocks[layer]
        attended = self._attention(layer, weights, x, place, method)
        if self.shape.parallel:
            return x + attended + self._mlp(layer, weights, x, method)
        x = x + self._scaled(attended)
        return x + self._scaled(self._mlp(layer, weights, x, method))

    def final_norm(self, x: Tensor) -> Tensor:
        """Return the input of the head (..., D)."""
        weights = self.weights
        return norm(x, self.shape.norm, weights.final_norm, weights.final_norm_bias)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.shape.residual_scale == 1.0 else x * self.shape.residual_scale

    def _norm(self, role: str, weights: BlockWeights, x: Tensor) -> Tensor:
        if role not in weights.norms:
            return x
        return norm(x, self.shape.norm, weights.norms[role], weights.norm_biases.get(role))

    def _project(
        self, role: str, layer: int, weights: BlockWeights, x: Tensor, method: Adaptation
    ) -> Tensor:
        linear = self.shape.linear_by_role[role]
        return method.project(layer, linear, x, weights.matrices[role], weights.biases.get(role))

    def _attention(
        self, layer: int, weights: BlockWeights, x: Tensor, place: Place, method: Adaptation
    ) -> Tensor:
        x = self._norm("attention_input", weights, x)
        q, k, v = self._queries_keys_values(layer, weights, x, method)
        rule = self.shape.attention[layer]
        if rule.rotary is not None:
            cos, sin = place.cos_sin(rule.rotary)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if place.cache is None:
            out = attend(q, k, v, rule, place.documents)
        else:
            k, v = _extend(place.cache, layer, k, v)
            out = causal(q, k, v, rule)
        out = out.transpose(1, 2).flatten(2)  # (B, S, H h)
        out = self._project("o", layer, weights, out, method)
        return self._norm("attention_output", weights, out)

    def _queries_keys_values(
        self, layer: int, weights: BlockWeights, x: Tensor, method: Adaptation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, H, S, h) and k, v (B, G, S, h), normalised where the model does so."""
        shape = self.shape
        if "qkv" in shape.linear_by_role:
            fused = self._project("qkv", layer, weights, x, method)
            if shape.interleaved_qkv:
                by_head = fused.view(*fused.shape[:-1], shape.heads, 3, shape.head_dim)
                q, k, v = (part.flatten(2) for part in by_head.unbind(-2))
            else:
                width = shape.kv_heads * shape.head_dim
                q, k, v = torch.split(fused, [fused.shape[-1] - 2 * width, width, width], dim=-1)
        else:
            q, k, v = (self._project(role, layer, weights, x, method) for role in ("q", "k", "v"))
        return (
            self._heads("q", weights, q),
            self._heads("k", weights, k),
            self._heads("v", weights, v),
        )

    def _heads(self, role: str, weights: BlockWeights, x: Tensor) -> Tensor:
        """Return (B, heads, S, h) of (B, S, heads h), with the norm of q or k if there is one."""
        size = self.shape.head_dim
        per_head = role in weights.norms and weights.norms[role].shape[0] == size
        if not per_head:
            x = self._norm(role, weights, x)
        x = x.reshape(*x.shape[:-1], -1, size)
        if per_head:
            x = self._norm(role, weights, x)
        return x.transpose(1, 2)

    def _mlp(self, layer: int, weights: BlockWeights, x: Tensor, method: Adaptation) -> Tensor:
        x = self._norm("mlp_input", weights, x)
        roles = self.shape.linear_by_role
        name = self.shape.activation
        if "gate_up" in roles:
            gate, up = self._project("gate_up", layer, weights, x, method).chunk(2, dim=-1)
            x = gated_activation(gate, up, name)
        elif "gate" in roles:
            gate = self._project("gate", layer, weights, x, method)
            x = gated_activation(gate, self._project("up", layer, weights, x, method), name)
        else:
            x = activation(self._project("up", layer, weights, x, method), name)
        x = self._project("down", layer, weights, x, method)
        return self._norm("mlp_output", weights, x)


def _extend(cache: Cache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Write new keys and values behind the cached ones and return all of them."""
    stop = cache.length + k.shape[2]
    cache.keys[layer][:, :, cache.length : stop] = k
    cache.values[layer][:, :, cache.length : stop] = v
    return cache.keys[layer][:, :, :stop], cache.values[layer][:, :, :stop]
