"""The text of the forward pass: one block that reads the model's shape, and the two ends.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head, F FFN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic

from edgetune.altup import AltUp
from edgetune.mixer import Recurrent
from edgetune.network import latent
from edgetune.network.adaptation import BASE, Adaptation
from edgetune.network.experts import beside, mixture
from edgetune.network.ops import A, Attended, Ops
from edgetune.shape import Attention, BlockShape, Latent, Linear, ModelShape, Norm, Rotary


@dataclass(frozen=True, slots=True)
class Block(Generic[A]):
    """One block in one pass, and a method that joins in; ``layer`` is None at the two ends.

    Nothing is held here for longer than a block's text has it: an interpreter may free a value
    as soon as the last name for it is gone.
    """

    ops: Ops[A]
    shape: ModelShape
    layer: int | None
    method: Adaptation[A]

    # what a method may ask

    @property
    def own(self) -> BlockShape:
        """The shape of the block; at the two ends, where no block is, that of the first."""
        return self.shape.blocks[self.layer or 0]

    @property
    def recurrent(self) -> Recurrent:
        """The mixer of the block that is not attention."""
        if self.own.recurrent is None:
            raise TypeError("attention attends: it has a place of its own")
        return self.own.recurrent

    def module(self, part: Linear | Norm) -> str:
        """Return the full module path of a projection or a norm."""
        return part.module if self.layer is None else f"{self.shape.block(self.layer)}{part.module}"

    def norm_of(self, role: str) -> Norm:
        """Return a norm by its role."""
        return self.shape.final_norm if role == "final" else self.own.norm_by_role[role]

    def keys_values(self, x: A) -> tuple[A, A]:
        """Return the frozen model's keys and values (1, G, S, h) of other hidden states.

        They have no positions.
        """
        block = replace(self, method=BASE)
        if self.own.attention is not None and self.own.attention.latent is not None:
            return latent.keys_values(block, x, self.own.attention.latent, None)
        k, v = block._unrotated_keys_values(x)
        return block.norm("k", k) if self.own.normed_after_rotation else k, v

    # the parts of the text

    def norm(self, role: str, x: A) -> A:
        """Return x normalised by one of the block's norms; x itself if it has none of this role."""
        if role not in self.own.norm_by_role:
            return x
        return self.method.norm(self, role, x)

    def project(self, role: str, x: A) -> A:
        """Return a projection (..., outputs) of x (..., inputs)."""
        linear = self.own.linear_by_role[role]
        y = self.method.project(self, linear, x)
        return y if linear.scale == 1.0 else self.ops.scaled(y, linear.scale)

    def mix(self, inputs: Sequence[A]) -> A:
        """Return what a mixer that is not attention makes of what its projections made."""
        return self.method.mix(self, inputs)

    # the text

    def output(self, x: A) -> A:
        """Return the output (B, S, D) of a block for its input."""
        if self.own.parallel:
            return self._parallel(x)
        if self.own.altup is not None:
            return self._one_of_several(x, self.own.altup)
        if self.own.mixer is not None:
            attended = self._first_half(self.norm("attention_input", x))
            x = self.ops.add(x, self._scaled(attended))
        if self.own.feeds:
            x = self.ops.add(x, self._scaled(self._mlp(self.norm("mlp_input", x), x)))
        if self.own.per_layer:
            x = self.ops.add(x, self._per_layer(x))
        return x if self.own.scalar is None else self.ops.frozen_times(x, "scalar")

    def _one_of_several(self, x: A, rule: AltUp) -> A:
        """Return all streams (B, S, N D) of a block that computes one of them (Gemma 3n)."""
        ops, widths = self.ops, (self.shape.hidden_size,) * rule.count
        routed = self.norm("altup", ops.split(x, widths)[rule.active])
        predicted = ops.predicted(x, routed)
        del x, routed
        one = ops.split(predicted, widths)[rule.active]
        one = self._computed(one)
        x = ops.corrected(predicted, one, self.norm("altup", one))
        del predicted, one
        one = ops.split(x, widths)[rule.active]
        own = self._per_layer(ops.frozen_times(one, "altup_scale") if rule.scaled else one)
        del one
        return ops.added_behind(x, own)

    def _computed(self, x: A) -> A:
        """Return what attention, a low-rank map beside it and the MLP make of one stream."""
        read = self.norm("attention_input", x)
        low = self.project("laurel_right", self.project("laurel_left", read))
        beside = self.ops.add(read, self.norm("laurel", low))
        del low
        x = self.ops.add(x, self._first_half(read))
        del read
        x = self.ops.scaled(self.ops.add(x, beside), 0.5**0.5)
        del beside
        return self.ops.add(x, self._mlp(self.norm("mlp_input", x), x))

    def _parallel(self, x: A) -> A:
        """Return the output of a block whose halves read the same, through one norm or two."""
        read = self.norm("attention_input", x)
        if "mlp_input" not in self.own.norm_by_role:
            attended = self._first_half(read)
            both = self.ops.add(x, attended)
            return self.ops.add(both, self._mlp(read, x))
        attended = self._first_half(read)
        del read
        both = self.ops.add(x, attended)
        return self.ops.add(both, self._mlp(self.norm("mlp_input", x), x))

    def leave(self, x: A) -> None:
        """Leave what later tiles read of a tile's tokens: keys and values, or the state behind them.

        x (B, S, D) is the tile of the block's input.
        """
        x, rule = self.norm("attention_input", x), self.own.attention
        if rule is None:
            assert self.own.recurrent is not None
            self.own.recurrent.mixed(self, x)
            return
        if rule.latent is not None:
            self.ops.keys(*latent.keys_values(self, x, rule.latent, rule.rotary))
            return
        k, v = self._unrotated_keys_values(x)
        self.ops.keys(self._rotated("k", k, rule.rotary), v)

    def embedded(self, tokens: A) -> A:
        """Return the input (B, S, D) of the first block for tokens (B, S)."""
        x = self.method.embed(self, self.method.look_up(self, tokens))
        if self.shape.positions is not None:
            x = self.ops.add(x, self.ops.position_embedding())
        return x if self.shape.embedding_norm is None else self.ops.norm("embedding", x)

    def entered(self, x: A) -> A:
        """Return the streams (B, S, N D) that embeddings (B, S, D) begin as."""
        return x if self.shape.altup is None else self.ops.parted_streams(x, self.shape.altup)

    def normed(self, x: A) -> A:
        """Return the input of the head (..., D)."""
        if self.shape.altup is not None:
            x = self.ops.joined_streams(x, self.shape.altup)
        return self.method.norm(self, "final", x)

    def _first_half(self, x: A) -> A:
        """Return what the mixer adds to the stream (B, S, D) of its normalised input."""
        match self.own.mixer:
            case Attention() as rule:
                out = self._attention(x, rule)
                if self.own.beside is not None:
                    out = self.ops.add(out, self.own.beside.output(self, x))
            case None:
                raise TypeError("the block has no mixer")
            case mixer:
                out = mixer.output(self, x)
        out = self.norm("attention_output", out)
        return self.method.sublayer(self, "attention", x, out)

    def _attention(self, x: A, rule: Attention) -> A:
        ops = self.ops
        if rule.source is not None:
            return self._attention_to_lent(x, rule, rule.source)
        if rule.latent is not None:
            return self._attention_to_latents(x, rule, rule.latent)
        q, k, v, gate = self._queries_keys_values(x)
        q = self._rotated("q", q, rule.query_rotary or rule.rotary)
        k = self._rotated("k", k, rule.rotary)
        if rule.lends:
            ops.lend(k, v)
        sinks = None if rule.sinks is None else ops.sinks()
        out = self._attend(Attended(q=q, k=k, v=v, rule=rule, keys=ops.keys(k, v), sinks=sinks))
        out = ops.from_heads(out)
        return self.project("o", out if gate is None else ops.gated(gate, out, "sigmoid"))

    def _attention_to_lent(self, x: A, rule: Attention, source: int) -> A:
        """Return what attention to the keys and values of another block adds to the stream."""
        ops = self.ops
        q = self._heads("q", self.project("q", x))
        q = q if rule.rotary is None else ops.rotate(q, rule.rotary)
        k, v = ops.lent(source)
        out = self._attend(Attended(q=q, k=k, v=v, rule=rule, keys=ops.keys(k, v)))
        return self.project("o", ops.from_heads(out))

    def _attention_to_latents(self, x: A, rule: Attention, own: Latent) -> A:
        """Return what attention adds to the stream whose keys and values are made of latents."""
        ops = self.ops
        q = self._rotated("q", latent.queries(self, x), rule.rotary)
        k, v = latent.keys_values(self, x, own, rule.rotary)
        out = self._attend(Attended(q=q, k=k, v=v, rule=rule, keys=ops.keys(k, v)))
        return self.project("o", latent.output(self, out, own))

    def _attend(self, attended: Attended[A]) -> A:
        """Return the output (B, H, S, h) of attention, also to what is cached of each row."""
        ops, count = self.ops, self.ops.cached_rows()
        if count == 0:
            return self.method.attend(self, attended)
        each = [ops.attended_rows(attended, slice(row, row + 1)) for row in range(count)]
        cached = [ops.cached(row, one) for row, one in enumerate(each)]
        if ops.first_pass():
            return self.method.attend(self, attended)
        outputs = [
            ops.filled(method.attend(self, one), attended.q)
            for method, one in zip(self.method.of_rows(count), cached, strict=True)
        ]
        return ops.concatenated(outputs)

    def _queries_keys_values(self, x: A) -> tuple[A, A, A, A | None]:
        """Return q (B, H, S, h) and k, v (B, G, S, h), normalised where the model does so.

        Last the gate (B, S, H h) of the output, if there is one.
        """
        q, k, v = self._projected_heads(x)
        gate: A | None = None
        if self.own.attention is not None and self.own.attention.gated:
            size = self.own.head_dim
            q, gate = self.ops.split_by_head(q, self.own.heads, (size, size))
        return self._heads("q", q), self._heads("k", k), self._heads("v", v), gate

    def _unrotated_keys_values(self, x: A) -> tuple[A, A]:
        """Return k and v (B, G, S, h) as :meth:`_queries_keys_values` does, without queries."""
        if "qkv" in self.own.linear_by_role:
            _, k, v = self._projected_heads(x)
        else:
            k, v = self._projected_keys_values(x)
        return self._heads("k", k), self._heads("v", v)

    def _rotated(self, role: str, x: A, rotary: Rotary | None) -> A:
        """Return q or k (B, heads, S, h) as it is attended with: rotated, where there is such."""
        x = x if rotary is None else self.ops.rotate(x, rotary)
        return self.norm(role, x) if self.own.normed_after_rotation else x

    def _projected_heads(self, x: A) -> tuple[A, A, A]:
        shape, ops = self.own, self.ops
        if "qkv" not in shape.linear_by_role:
            return self.project("q", x), *self._projected_keys_values(x)
        fused = self.project("qkv", x)
        if shape.interleaved_qkv:
            size, shared = shape.head_dim, shape.heads // shape.kv_heads
            q, k, v = ops.split_by_head(fused, shape.kv_heads, (shared * size, size, size))
        else:
            q, k, v = ops.split(fused, (shape.queries, shape.keys, shape.keys))
        return q, k, v

    def _projected_keys_values(self, x: A) -> tuple[A, A]:
        """Return k and v (B, S, G h), which may be the same."""
        k = self.project("k", x)
        return k, self.project("v", x) if "v" in self.own.linear_by_role else k

    def _heads(self, role: str, x: A) -> A:
        """Return (B, heads, S, h) of (B, S, heads h), with its norm if there is one."""
        size, norm = self.own.head_dim, self.own.norm_by_role.get(role)
        if self.own.normed_after_rotation:
            norm = None
        if norm is not None and norm.size != size:
            x = self.norm(role, x)
        x = self.ops.to_heads(x, size)
        if norm is not None and norm.size == size:
            x = self.norm(role, x)
        return self.ops.heads_first(x)

    def _mlp(self, x: A, stream: A) -> A:
        """Return what the MLP, or experts, add to the stream of its normalised values x."""
        rule, out = self.own.experts, None
        if "down" in self.own.linear_by_role:
            out = self.norm("shared_output", self.project("down", self._inner(x)))
        if rule is not None:
            chosen = mixture(self, rule, x, stream)
            out = chosen if out is None else beside(self.ops, rule, x, out, chosen)
            del chosen
        assert out is not None
        out = self.norm("mlp_output", out)
        return self.method.sublayer(self, "mlp", x, out)

    def _inner(self, x: A) -> A:
        """Return what the FFN's output projection reads (B, S, F)."""
        shape, ops = self.own, self.ops
        if "gate_up" in shape.linear_by_role:
            gate, up = ops.split(self.project("gate_up", x), (shape.ffn_size, shape.ffn_size))
            return ops.gated(gate, up, shape.activation)
        if "gate" in shape.linear_by_role:
            gate = self.project("gate", x)
            gate = gate if shape.cutoff is None else ops.above(gate, shape.cutoff)
            return ops.gated(gate, self.project("up", x), shape.activation)
        return ops.activation(self.project("up", x), shape.activation)

    def _per_layer(self, x: A) -> A:
        """Return what the block's own numbers of each token add to the stream (B, S, D)."""
        own = self.ops.per_layer_input()
        inner = self.ops.gated(self.project("per_layer_gate", x), own, self.own.activation)
        return self.norm("per_layer", self.project("per_layer_out", inner))

    def _scaled(self, x: A) -> A:
        scale = self.shape.residual_scale
        return x if scale == 1.0 else self.ops.scaled(x, scale)
