"""The forward pass of every decoder: one block that reads the model's shape.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head, F FFN.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import mlx.core as mx

from edgetune.shape import ModelShape, Rotary
from edgetune_mlx.adaptation import BASE, Adaptation, Attended
from edgetune_mlx.attention import Keys
from edgetune_mlx.load import BlockWeights, Weights
from edgetune_mlx.pointwise import activation, gated_activation, rotate
from edgetune_mlx.precision import DTYPES
from edgetune_mlx.rotary import frequencies


@dataclass(slots=True)
class Cache:
    """Keys and values of one generated row, (1, G, capacity, h) a layer, filled to ``length``."""

    keys: list[mx.array]
    values: list[mx.array]
    length: int = 0


@dataclass(slots=True, kw_only=True)
class Place:
    """Where the tokens of a micro-batch stand.

    ``positions`` (B, S) start again with each document, ``documents`` (B, S) numbers the
    documents of a row and is None if no row has several.
    """

    positions: mx.array
    documents: mx.array | None
    context: int
    first: int = 0
    """Position of the first token of every row."""
    cache: Cache | None = None
    _angles: dict[Rotary, mx.array] = field(default_factory=dict)

    @classmethod
    def row(cls, start: int, stop: int, before: int, cache: Cache | None = None) -> Place:
        """Return where tokens ``start`` to ``stop`` of one document stand, behind ``before``."""
        positions = mx.arange(start + before, stop + before)[None]
        return cls(positions=positions, documents=None, context=stop + before, first=start + before,
                   cache=cache)  # fmt: skip

    @property
    def keys(self) -> Keys:
        """Which keys the tokens see."""
        return Keys(self.documents, self.positions)

    def rotate(self, x: mx.array, rotary: Rotary) -> mx.array:
        """Return x (B, heads, S, h) rotated by position."""
        if rotary not in self._angles:
            self._angles[rotary] = frequencies(rotary, self.context)
        positions = self.first if self.documents is None else self.positions
        return rotate(x, self._angles[rotary], rotary, positions)


class Decoder:
    """A frozen model, one block at a time; an adaptation joins in at its places."""

    def __init__(self, shape: ModelShape, weights: Weights, dtype: mx.Dtype) -> None:
        """Compute in ``dtype`` with the given weights."""
        self.shape = shape
        self.weights = weights
        self.dtype = dtype

    def embed(self, tokens: mx.array, place: Place, method: Adaptation) -> mx.array:
        """Return the input of the first block (B, S, D) for tokens (B, S)."""
        x = self.weights.embedding.rows(tokens, self.dtype)
        if self.shape.embedding_scale != 1.0:
            # transformers rounds this factor to the model's own number format
            x = x * mx.array(self.shape.embedding_scale, DTYPES[self.shape.dtype]).item()
        x = method.embed(x, place.positions)
        if self.weights.positions is not None:
            x = x + self.weights.positions[place.positions].astype(self.dtype)
        return x

    def block(self, layer: int, x: mx.array, place: Place, method: Adaptation) -> mx.array:
        """Return the output of one block (B, S, D)."""
        part = _Block(self.shape, layer, self.weights.blocks[layer], place, method)
        attended = part.attention(x)
        if self.shape.parallel:
            return x + attended + part.mlp(x)
        x = x + self._scaled(attended)
        return x + self._scaled(part.mlp(x))

    def final_norm(self, x: mx.array, method: Adaptation) -> mx.array:
        """Return the input of the head (..., D)."""
        gain, shift = self.weights.final_norm, self.weights.final_norm_bias
        return method.norm(None, "final", x, self.shape.norm, gain, shift)

    def _scaled(self, x: mx.array) -> mx.array:
        return x if self.shape.residual_scale == 1.0 else x * self.shape.residual_scale


@dataclass(frozen=True, slots=True)
class _Block:
    """One block with everything that it computes from."""

    shape: ModelShape
    layer: int
    weights: BlockWeights
    place: Place
    method: Adaptation

    def attention(self, x: mx.array) -> mx.array:
        rule, place = self.shape.attention[self.layer], self.place
        x = self._norm("attention_input", x)
        q, k, v = self._queries_keys_values(x)
        if rule.rotary is not None:
            q, k = place.rotate(q, rule.rotary), place.rotate(k, rule.rotary)
        if place.cache is not None:
            k, v = _extend(place.cache, self.layer, k, v)
        attended = Attended(
            layer=self.layer, q=q, k=k, v=v, rule=rule, keys=place.keys,
            keys_values=self._keys_values,
        )  # fmt: skip
        out = self.method.attend(attended).swapaxes(1, 2)  # (B, S, H, h)
        out = self._project("o", out.reshape(*out.shape[:2], -1))
        return self.method.sublayer(self.layer, "attention", x, self._norm("attention_output", out))

    def mlp(self, x: mx.array) -> mx.array:
        entry = x = self._norm("mlp_input", x)
        roles, name = self.shape.linear_by_role, self.shape.activation
        if "gate_up" in roles:
            gate, up = mx.split(self._project("gate_up", x), 2, axis=-1)
            x = gated_activation(gate, up, name)
        elif "gate" in roles:
            x = gated_activation(self._project("gate", x), self._project("up", x), name)
        else:
            x = activation(self._project("up", x), name)
        out = self._norm("mlp_output", self._project("down", x))
        return self.method.sublayer(self.layer, "mlp", entry, out)

    def _keys_values(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Return the frozen model's keys and values (1, G, S, h) of other hidden states."""
        _, k, v = replace(self, method=BASE)._queries_keys_values(x)
        return k, v

    def _queries_keys_values(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Return q (B, H, S, h) and k, v (B, G, S, h), normalised where the model does so."""
        shape = self.shape
        if "qkv" not in shape.linear_by_role:
            q, k, v = (self._project(role, x) for role in ("q", "k", "v"))
        elif shape.interleaved_qkv:
            by_head = self._project("qkv", x).reshape(*x.shape[:2], shape.heads, 3, shape.head_dim)
            q, k, v = (by_head[..., i, :].flatten(2) for i in range(3))
        else:
            widths = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
            q, k, v = mx.split(self._project("qkv", x), [widths[0], sum(widths)], axis=-1)
        return self._heads("q", q), self._heads("k", k), self._heads("v", v)

    def _heads(self, role: str, x: mx.array) -> mx.array:
        """Return (B, heads, S, h) of (B, S, heads h), with the norm of q or k if there is one."""
        size, norms = self.shape.head_dim, self.weights.norms
        per_head = role in norms and norms[role].size == size
        if not per_head:
            x = self._norm(role, x)
        x = x.reshape(*x.shape[:2], -1, size)
        if per_head:
            x = self._norm(role, x)
        return x.swapaxes(1, 2)

    def _norm(self, role: str, x: mx.array) -> mx.array:
        weights = self.weights
        if role not in weights.norms:
            return x
        gain, shift = weights.norms[role], weights.norm_biases.get(role)
        return self.method.norm(self.layer, role, x, self.shape.norm, gain, shift)

    def _project(self, role: str, x: mx.array) -> mx.array:
        linear, weights = self.shape.linear_by_role[role], self.weights
        matrix, bias = weights.matrices[role], weights.biases.get(role)
        return self.method.project(self.layer, linear, x, matrix, bias)


def _extend(cache: Cache, layer: int, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
    """Write new keys and values behind the cached ones and return all of them."""
    stop = cache.length + k.shape[2]
    cache.keys[layer][:, :, cache.length : stop] = k
    cache.values[layer][:, :, cache.length : stop] = v
    return cache.keys[layer][:, :, :stop], cache.values[layer][:, :, :stop]
