"""The forward pass of every decoder: one block that reads the model's shape.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head, F FFN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from edgetune.data.batch import MicroBatch
from edgetune.data.virtual import computed
from edgetune.shape import ModelShape, Rotary
from edgetune_mlx.adaptation import BASE, Adaptation, Attended
from edgetune_mlx.attention import Keys
from edgetune_mlx.load import BlockWeights, Weights
from edgetune_mlx.matrices import Sequencer
from edgetune_mlx.pointwise import gated_activation, plain_activation, rotate
from edgetune_mlx.precision import DTYPES
from edgetune_mlx.rotary import frequencies


@dataclass(slots=True)
class Cache:
    """Keys and values of one row in generation, (1, G, capacity, h) a layer.

    They are filled to ``length``; a pass writes ``arriving`` ones behind it, and who runs the
    pass moves it.
    """

    keys: list[mx.array]
    values: list[mx.array]
    length: int = 0
    arriving: int = 0


@dataclass(slots=True, kw_only=True)
class TokenLayout:
    """Where the tokens of a micro-batch stand.

    ``positions`` (B, S) start again with each document, ``documents`` (B, S) numbers the
    documents of a row and is None if no row has several. In generation each row is one document
    and has a cache, which is empty in the first pass; in those after it, each row has one token.

    ``context`` is a length that stands for those of all documents, as far as the rotation depends
    on them; ``lengths`` (B, S) has each token's, where one cannot stand for all.
    """

    positions: mx.array
    documents: mx.array | None
    context: int
    lengths: mx.array | None = None
    first: int | None = 0
    """Position of the first token of every row; None if they differ."""
    caches: Sequence[Cache] = ()
    _angles: dict[Rotary, mx.array] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        batch: MicroBatch,
        method: Adaptation,
        caches: Sequence[Cache] = (),
    ) -> TokenLayout:
        """Return where the tokens of a micro-batch stand, its placeholders included."""
        before = np.array([[row.positions] for row in method.of_rows(len(batch.tokens))], np.int32)
        several = any(len(row) > 1 for row in batch.documents)
        alike = not several and len(np.unique(before)) == 1
        lengths = batch.lengths() + before
        reached = {shape.reached(int(length)) for length in np.unique(lengths[batch.lengths() > 0])}
        return cls(
            positions=mx.array(batch.positions() + before),
            documents=_numbered(batch) if several else None,
            context=max(reached, default=1),
            lengths=mx.array(lengths) if len(reached) > 1 else None,
            first=int(before[0, 0]) if alike else None,
            caches=caches,
        )

    @property
    def keys(self) -> Keys:
        """Which keys the tokens see."""
        return Keys(self.documents, self.positions)

    def rotate(self, x: mx.array, rotary: Rotary) -> mx.array:
        """Return x (B, heads, S, h) rotated by position."""
        if rotary.scaling == "longrope" and self.lengths is not None:
            lengths = self.lengths[:, None, :, None]  # (B, 1, S, 1)
            short, long = (frequencies(rotary, rotary.original_context + i) for i in (0, 1))
            each = mx.where(lengths > rotary.original_context, long, short)
            return rotate(x, each, rotary, self.positions)
        if rotary not in self._angles:
            self._angles[rotary] = frequencies(rotary, self.context)
        positions = self.positions if self.first is None else self.first
        return rotate(x, self._angles[rotary], rotary, positions)


def placed(
    decoder: Decoder, batch: MicroBatch, method: Adaptation, caches: Sequence[Cache] = ()
) -> tuple[MicroBatch, TokenLayout]:
    """Return a micro-batch with the placeholders that its rows want, and where its tokens stand."""
    each = method.of_rows(len(batch.tokens))
    batch = computed(batch, [row.virtual_tokens for row in each])
    return batch, TokenLayout.of(decoder.shape, batch, method, caches)


class Decoder:
    """A frozen model, one block at a time; an adaptation joins in at its places."""

    def __init__(self, shape: ModelShape, weights: Weights, dtype: mx.Dtype) -> None:
        """Compute in ``dtype`` with the given weights."""
        self.shape = shape
        self.weights = weights
        self.dtype = dtype

    def embed(self, tokens: mx.array, layout: TokenLayout, method: Adaptation) -> mx.array:
        """Return the input of the first block (B, S, D) for tokens (B, S)."""
        x = self.weights.embedding.rows(tokens, self.dtype)
        if self.shape.embedding_scale != 1.0:
            # transformers rounds this factor to the model's own number format
            x = x * mx.array(self.shape.embedding_scale, DTYPES[self.shape.dtype]).item()
        x = method.embed(x, layout.positions)
        if self.weights.positions is not None:
            x = x + self.weights.positions[layout.positions].astype(self.dtype)
        return x

    def block(self, layer: int, x: mx.array, layout: TokenLayout, method: Adaptation) -> mx.array:
        """Return the output of one block (B, S, D)."""
        part = _Block(self.shape, layer, self.weights.blocks[layer], layout, method)
        attended = part.attention(x)
        if self.shape.parallel:
            return x + attended + part.mlp(x)
        x = x + self._scaled(attended)
        return x + self._scaled(part.mlp(x))

    def final_norm(self, x: mx.array, method: Adaptation) -> mx.array:
        """Return the input of the head (..., D)."""
        weight, bias = self.weights.final_norm, self.weights.final_norm_bias
        return method.norm(None, "final", x, self.shape.norm, weight, bias)

    def _scaled(self, x: mx.array) -> mx.array:
        return x if self.shape.residual_scale == 1.0 else x * self.shape.residual_scale


@dataclass(frozen=True, slots=True)
class _Block:
    """One block with everything that it computes from."""

    shape: ModelShape
    layer: int
    weights: BlockWeights
    layout: TokenLayout
    method: Adaptation
    sequencer: Sequencer = field(default_factory=Sequencer)

    def attention(self, x: mx.array) -> mx.array:
        rule, layout = self.shape.attention[self.layer], self.layout
        x = self._norm("attention_input", x)
        q, k, v = self._queries_keys_values(x)
        if rule.rotary is not None:
            q, k = layout.rotate(q, rule.rotary), layout.rotate(k, rule.rotary)
        attended = Attended(
            layer=self.layer, q=q, k=k, v=v, rule=rule, keys=layout.keys,
            keys_values=self._keys_values,
        )  # fmt: skip
        out = _attend(attended, layout, self.method).swapaxes(1, 2)  # (B, S, H, h)
        out = self._project("o", out.reshape(*out.shape[:2], -1))
        return self.method.sublayer(self.layer, "attention", x, self._norm("attention_output", out))

    def mlp(self, x: mx.array) -> mx.array:
        mlp_input = x = self._norm("mlp_input", x)
        roles, name = self.shape.linear_by_role, self.shape.activation
        if "gate_up" in roles:
            gate, up = mx.split(self._project("gate_up", x), 2, axis=-1)
            x = gated_activation(gate, up, name)
        elif "gate" in roles:
            x = gated_activation(self._project("gate", x), self._project("up", x), name)
        else:
            x = plain_activation(self._project("up", x), name)
        out = self._norm("mlp_output", self._project("down", x))
        return self.method.sublayer(self.layer, "mlp", mlp_input, out)

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
        weight, bias = weights.norms[role], weights.norm_biases.get(role)
        return self.method.norm(self.layer, role, x, self.shape.norm, weight, bias)

    def _project(self, role: str, x: mx.array) -> mx.array:
        linear, weights = self.shape.linear_by_role[role], self.weights
        matrix, bias = weights.matrices[role].serialized(self.sequencer), weights.biases.get(role)
        return self.method.project(self.layer, linear, x, matrix, bias)


def _attend(attended: Attended, layout: TokenLayout, method: Adaptation) -> mx.array:
    """Return the output (B, H, S, h) of attention, also to what is cached of each row."""
    if not layout.caches:
        return method.attend(attended)
    rows = [attended.of_rows(slice(i, i + 1)) for i in range(len(layout.caches))]
    cached = [_extended(row, cache) for row, cache in zip(rows, layout.caches, strict=True)]
    if layout.caches[0].length == 0:
        return method.attend(attended)
    each = method.of_rows(len(cached))
    return mx.concatenate([one.attend(row) for one, row in zip(each, cached, strict=True)])


def _extended(row: Attended, cache: Cache) -> Attended:
    """Write a row's keys and values behind the cached ones and attend to all of them."""
    start, stop = cache.length, cache.length + cache.arriving
    keys, values = cache.keys[row.layer], cache.values[row.layer]
    keys[:, :, start:stop] = row.k[:, :, : cache.arriving]  # without the padding behind
    values[:, :, start:stop] = row.v[:, :, : cache.arriving]
    return replace(row, k=keys[:, :, :stop], v=values[:, :, :stop])


def _numbered(batch: MicroBatch) -> mx.array:
    """Return the number (B, S) of the document of each token; padding belongs to none."""
    numbers = np.full(batch.tokens.shape, -1, np.int32)
    for row, lengths in zip(numbers, batch.documents, strict=True):
        row[: sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
    return mx.array(numbers)
