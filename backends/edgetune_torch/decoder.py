"""The forward pass of every decoder: one block that reads the model's shape.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head, F FFN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edgetune.data.batch import MicroBatch
from edgetune.data.virtual import computed
from edgetune.shape import ModelShape, Rotary
from edgetune_torch.adaptation import BASE, Adaptation, Attended
from edgetune_torch.attention import Documents
from edgetune_torch.load import Weights
from edgetune_torch.pointwise import activation, gated_activation, rotate
from edgetune_torch.rotary import cos_sin
from edgetune_torch.weights import BlockWeights


@dataclass(slots=True)
class Cache:
    """Keys and values of one row in generation, (1, G, capacity, h) a layer.

    They are filled to ``length``; a pass writes behind it, and who runs the pass moves it.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: int = 0


@dataclass(slots=True, kw_only=True)
class TokenLayout:
    """Where the tokens of a micro-batch stand: positions (B, S) and documents a row.

    ``lengths`` (B, S) are those of the tokens' documents, where the rotation depends on them.
    In generation each row is one document and has a cache, which is empty in the first pass;
    in those after it, each row has one token.
    """

    positions: Tensor
    documents: Documents
    dtype: torch.dtype
    lengths: Tensor | None = None
    caches: Sequence[Cache] = ()
    _tables: dict[Rotary, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def cos_sin(self, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Return the rotation of these positions, computed once for all layers."""
        if rotary not in self._tables:
            self._tables[rotary] = cos_sin(rotary, self.positions, self.dtype, self.lengths)
        return self._tables[rotary]


def placed(
    decoder: Decoder, batch: MicroBatch, method: Adaptation, caches: Sequence[Cache] = ()
) -> tuple[MicroBatch, TokenLayout]:
    """Return a micro-batch with the placeholders that its rows want, and where its tokens stand."""
    each = method.of_rows(len(batch.tokens))
    batch = computed(batch, [one.virtual_tokens for one in each])
    before, device = np.array([[one.positions] for one in each], np.int32), decoder.weights.device
    lengths = batch.lengths() + before if decoder.shape.rotates_by_length else None
    return batch, TokenLayout(
        positions=torch.from_numpy(batch.positions() + before).to(device),
        documents=batch.documents,
        dtype=decoder.dtype,
        lengths=None if lengths is None else torch.from_numpy(lengths).to(device),
        caches=caches,
    )


class Decoder:
    """A frozen model, one block at a time; an adaptation joins in at its places."""

    def __init__(self, shape: ModelShape, weights: Weights, dtype: torch.dtype) -> None:
        """Compute in ``dtype`` with the given weights."""
        self.shape = shape
        self.weights = weights
        self.dtype = dtype

    def embed(self, tokens: Tensor, layout: TokenLayout, method: Adaptation = BASE) -> Tensor:
        """Return the input of the first block (B, S, D) for tokens (B, S)."""
        x = self.weights.embedding.rows(tokens).to(self.dtype)
        if self.shape.embedding_scale != 1.0:
            # transformers rounds this factor to the model's own number format
            stored = self.weights.embedding.dtype
            x = x * float(torch.tensor(self.shape.embedding_scale, dtype=stored))
        x = method.embed(x, layout.positions)
        if self.weights.positions is not None:
            x = x + self.weights.positions[layout.positions].to(self.dtype)
        return x

    def hidden(self, tokens: Tensor, layout: TokenLayout, method: Adaptation) -> Tensor:
        """Return the output of the last block (B, S, D) for tokens (B, S)."""
        x = self.embed(tokens, layout, method)
        for layer in self.weights.blocks.walk(range(self.shape.layers)):
            x = self.block(layer, x, layout, method)
        return x

    def block(self, layer: int, x: Tensor, layout: TokenLayout, method: Adaptation) -> Tensor:
        """Return the output of one block (B, S, D)."""
        weights = self.weights.blocks[layer]
        attended = self._attention(layer, weights, x, layout, method)
        if self.shape.parallel:
            return x + attended + self._mlp(layer, weights, x, method)
        x = x + self._scaled(attended)
        return x + self._scaled(self._mlp(layer, weights, x, method))

    def final_norm(self, x: Tensor, method: Adaptation = BASE) -> Tensor:
        """Return the input of the head (..., D)."""
        weight, bias = self.weights.final_norm, self.weights.final_norm_bias
        return method.norm(None, "final", x, self.shape.norm, weight, bias)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.shape.residual_scale == 1.0 else x * self.shape.residual_scale

    def _norm(
        self, role: str, layer: int, weights: BlockWeights, x: Tensor, method: Adaptation
    ) -> Tensor:
        if role not in weights.norms:
            return x
        weight, bias = weights.norms[role], weights.norm_biases.get(role)
        return method.norm(layer, role, x, self.shape.norm, weight, bias)

    def _project(
        self, role: str, layer: int, weights: BlockWeights, x: Tensor, method: Adaptation
    ) -> Tensor:
        linear = self.shape.linear_by_role[role]
        return method.project(layer, linear, x, weights.matrices[role], weights.biases.get(role))

    def _attention(
        self, layer: int, weights: BlockWeights, x: Tensor, layout: TokenLayout, method: Adaptation
    ) -> Tensor:
        x = self._norm("attention_input", layer, weights, x, method)
        q, k, v = self._queries_keys_values(layer, weights, x, method)
        rule = self.shape.attention[layer]
        if rule.rotary is not None:
            cos, sin = layout.cos_sin(rule.rotary)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        attended = Attended(
            layer=layer, q=q, k=k, v=v, rule=rule, documents=layout.documents, cached=False,
            keys_values=partial(self._keys_values, layer, weights),
        )  # fmt: skip
        out = _attend(attended, layout, method).transpose(1, 2).flatten(2)  # (B, S, H h)
        out = self._project("o", layer, weights, out, method)
        out = self._norm("attention_output", layer, weights, out, method)
        return method.sublayer(layer, "attention", x, out)

    def _keys_values(self, layer: int, weights: BlockWeights, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frozen model's keys and values (1, G, S, h) of other hidden states."""
        _, k, v = self._queries_keys_values(layer, weights, x, BASE)
        return k, v

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
            self._heads("q", layer, weights, q, method),
            self._heads("k", layer, weights, k, method),
            self._heads("v", layer, weights, v, method),
        )

    def _heads(
        self, role: str, layer: int, weights: BlockWeights, x: Tensor, method: Adaptation
    ) -> Tensor:
        """Return (B, heads, S, h) of (B, S, heads h), with the norm of q or k if there is one."""
        size = self.shape.head_dim
        per_head = role in weights.norms and weights.norms[role].shape[0] == size
        if not per_head:
            x = self._norm(role, layer, weights, x, method)
        x = x.reshape(*x.shape[:-1], -1, size)
        if per_head:
            x = self._norm(role, layer, weights, x, method)
        return x.transpose(1, 2)

    def _mlp(self, layer: int, weights: BlockWeights, x: Tensor, method: Adaptation) -> Tensor:
        mlp_input = x = self._norm("mlp_input", layer, weights, x, method)
        roles = self.shape.linear_by_role
        name = self.shape.activation
        if "gate_up" in roles:
            gate, up = self._project("gate_up", layer, weights, x, method).chunk(2, dim=-1)
            x = gated_activation(gate, up, name)
            del gate, up  # they must not live on beside what comes
        elif "gate" in roles:
            gate = self._project("gate", layer, weights, x, method)
            x = gated_activation(gate, self._project("up", layer, weights, x, method), name)
            del gate
        else:
            x = activation(self._project("up", layer, weights, x, method), name)
        x = self._project("down", layer, weights, x, method)
        x = self._norm("mlp_output", layer, weights, x, method)
        return method.sublayer(layer, "mlp", mlp_input, x)


def _attend(attended: Attended, layout: TokenLayout, method: Adaptation) -> Tensor:
    """Return the output (B, H, S, h) of attention, also to what is cached of each row."""
    if not layout.caches:
        return method.attend(attended)
    rows = [attended.of_rows(slice(i, i + 1)) for i in range(len(layout.caches))]
    cached = [_extended(row, cache) for row, cache in zip(rows, layout.caches, strict=True)]
    if layout.caches[0].length == 0:
        return method.attend(attended)
    each = method.of_rows(len(cached))
    return torch.cat([one.attend(row) for one, row in zip(each, cached, strict=True)])


def _extended(row: Attended, cache: Cache) -> Attended:
    """Write a row's keys and values behind the cached ones and attend to all of them."""
    ((count,),) = row.documents  # without the padding behind
    start, stop = cache.length, cache.length + count
    keys, values = cache.keys[row.layer], cache.values[row.layer]
    keys[:, :, start:stop] = row.k[:, :, :count]
    values[:, :, start:stop] = row.v[:, :, :count]
    return replace(row, k=keys[:, :, :stop], v=values[:, :, :stop], cached=True)
