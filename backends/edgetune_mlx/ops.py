"""The operations of :mod:`edgetune.network.ops` on MLX's arrays, with gradients.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

from edgetune.altup import AltUp
from edgetune.mixer import Recurrent
from edgetune.network.ops import Attended, Dropout, ExpertUpdates, KeptNorms, Key
from edgetune.shape import Experts, ModelShape, Rotary
from edgetune_mlx import (
    altup,
    attention,
    experts,
    linear,
    mixers,
    pointwise,
    routing,
    tile_attention,
    trained,
    xielu,
)
from edgetune_mlx.attention import Keys
from edgetune_mlx.load import BlockWeights, Weights
from edgetune_mlx.matrices import Matrix, Sequencer
from edgetune_mlx.precision import DTYPES
from edgetune_mlx.token_layout import TokenLayout


@dataclass(frozen=True, slots=True)
class MlxOps:
    """One block's operations in one pass; ``block`` has the final norm at the model's ends."""

    shape: ModelShape
    weights: Weights
    block: BlockWeights
    layout: TokenLayout
    dtype: mx.Dtype
    layer: int = 0
    sequencer: Sequencer = field(default_factory=Sequencer)

    # what is frozen

    def embedding(self, tokens: mx.array, scale: float, table: mx.array | None = None) -> mx.array:
        """Return embeddings (B, S, D) of tokens (B, S)."""
        if table is None:
            x = self.weights.embedding.rows(tokens, self.dtype)
        else:
            x = table[tokens].astype(self.dtype)
        if scale == 1.0:
            return x
        # transformers rounds this factor to the model's own number format
        return x * mx.array(scale, DTYPES[self.shape.dtype]).item()

    def position_embedding(self) -> mx.array:
        """Return the embeddings (B, S, D) of the tokens' positions."""
        assert self.weights.positions is not None
        return self.weights.positions[self.layout.positions + self.shape.position_offset].astype(
            self.dtype
        )

    def linear(self, role: str, x: mx.array, *, bias: bool = True) -> mx.array:
        """Multiply by a frozen matrix."""
        added = self.block.biases.get(role) if bias else None
        return linear.frozen_linear(x, self._matrix(role), added)

    def lora_linear(
        self, role: str, x: mx.array, a: mx.array, b: mx.array, scale: float,
        dropout: Dropout | None, *, bias: bool = True, fixed: bool = False,
    ) -> mx.array:  # fmt: skip
        """Multiply by a frozen matrix and a low-rank update."""
        dropout = self._placed(dropout)
        added = (linear.half_fixed if fixed else linear.low_rank)(x, a, b, scale, dropout)
        return self.linear(role, x, bias=bias) + added

    def bias(self, role: str, y: mx.array) -> mx.array:
        """Add a frozen bias."""
        bias = self.block.biases.get(role)
        return y if bias is None else y + bias.astype(y.dtype)

    def norm(
        self, role: str, x: mx.array, weight: mx.array | None = None, bias: mx.array | None = None
    ) -> mx.array:
        """Normalise x."""
        weight = self.block.norms.get(role) if weight is None else weight
        bias = self.block.norm_biases.get(role) if bias is None else bias
        own = self.shape.blocks[self.layer].norm_by_role.get(role)
        kind = self.shape.norm if own is None or own.kind is None else own.kind
        return pointwise.norm(x, kind, weight, bias)

    def row_norms(
        self,
        key: Key,
        a: mx.array,
        b: mx.array,
        scale: float,
        kept: KeptNorms[mx.array],  # noqa: ARG002
    ) -> mx.array:
        """Return the norms of the rows of ``W + scale b a``; nothing is kept between graphs."""
        return linear.row_norms(self._matrix(key[1]), a, b, scale)

    # a mixture of experts

    def route(self, x: mx.array, rule: Experts) -> tuple[mx.array, mx.array]:
        """Choose experts for the tokens of x."""
        return routing.route(x, routing.Router(rule, self.block.routing))

    def experts(
        self, x: mx.array, weights: mx.array, chosen: mx.array, rule: Experts, activation: str,
        updates: ExpertUpdates[mx.array],
    ) -> mx.array:  # fmt: skip
        """Send each token through its experts."""
        matrices = {str(role): self._matrix(f"experts.{role}") for role, _ in rule.projections}
        biases = {
            str(role): self.block.biases[f"experts.{role}"] for role, _ in rule.projections
        } if rule.biased else {}  # fmt: skip
        own = experts.FrozenExperts(rule, activation, matrices, biases, chosen, updates)
        return experts.mixed(x, weights, own)

    def shared(self, x: mx.array, y: mx.array) -> mx.array:
        """Multiply what all tokens went through by how much of it each gets."""
        return experts.shared(x, y, self.block.routing["shared_gate"])

    # what tokens are to each other

    def rotate(self, x: mx.array, rotary: Rotary) -> mx.array:
        """Rotate x (B, heads, S, h)."""
        return self.layout.rotate(x, rotary)

    def with_shared(self, k: mx.array, shared: mx.array) -> mx.array:
        """Put what all heads share behind the channels of each."""
        every = mx.broadcast_to(shared, (*k.shape[:3], shared.shape[3]))
        return mx.concatenate([k, every], axis=-1)

    def channels(self, x: mx.array, size: int) -> mx.array:
        """Put zeros behind channels, or leave the last ones out."""
        missing = size - x.shape[-1]
        if missing <= 0:
            return x[..., :size]
        return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])

    def keys(self, k: mx.array, v: mx.array) -> Keys:
        """Return the documents of each row; leave keys and values for the tiles to come."""
        tile = self.layout.tile
        if tile is None:
            return self.layout.keys
        tile.own = k, v
        return replace(tile.keys, tile=tile)

    def attend(
        self, attended: Attended[mx.array], before: tuple[mx.array, mx.array] | None = None
    ) -> mx.array:
        """Attend, to keys in front of those of every document too."""
        if attended.keys.tile is not None:
            return tile_attention.attend_in_tile(attended, before)
        if before is not None:
            attended = attention.behind(attended, *before)
        return attention.causal(attended)

    def sinks(self) -> mx.array:
        """Return the scores of sinks."""
        return self.block.mixer["sinks"]

    def lend(self, k: mx.array, v: mx.array) -> None:
        """Keep k and v for later blocks."""
        self.layout.lent[self.layer] = (k, v)

    def lent(self, layer: int) -> tuple[mx.array, mx.array]:
        """Return what an earlier block has lent."""
        return self.layout.lent[layer]

    def per_layer_input(self) -> mx.array:
        """Return the block's own numbers of each token."""
        return self.layout.per_layer[self.layer]

    def frozen_times(self, x: mx.array, role: str) -> mx.array:
        """Multiply by a frozen tensor of the block."""
        return x * self.block.mixer[role].astype(x.dtype)

    # several streams

    def parted_streams(self, x: mx.array, rule: AltUp) -> mx.array:
        """Begin the streams."""
        return altup.parted(x, [self.weights.streams[name] for name in rule.entries])

    def joined_streams(self, x: mx.array, rule: AltUp) -> mx.array:
        """Average the streams."""
        return altup.joined(x, [self.weights.streams[name] for name in rule.exits])

    def predicted(self, x: mx.array, routed: mx.array) -> mx.array:
        """Mix the streams."""
        own = self.block.mixer
        return altup.predicted(x, routed, own["altup_router"], own["altup_prediction"])

    def corrected(self, x: mx.array, made: mx.array, routed: mx.array) -> mx.array:
        """Move the streams."""
        own, rule = self.block.mixer, self.shape.altup
        assert rule is not None
        router, weight = own["altup_router"], own["altup_correction"]
        return altup.corrected(x, made, routed, router, weight, active=rule.active)

    def added_behind(self, x: mx.array, y: mx.array) -> mx.array:
        """Add to all streams but the first."""
        return altup.added_behind(x, y)

    def above(self, x: mx.array, deviations: float) -> mx.array:
        """Let through what is far above the mean."""
        return altup.above(x, deviations)

    def some_heads(self, attended: Attended[mx.array], heads: slice) -> Attended[mx.array]:
        """Attend with some heads."""
        k, v = attended.k[:, heads], attended.v[:, heads]
        shared = attended.q.shape[1] // attended.k.shape[1]
        first = (heads.start or 0) * shared
        q = attended.q[:, first : first + k.shape[1] * shared]
        sinks = attended.sinks
        sinks = None if sinks is None else sinks[first : first + k.shape[1] * shared]
        keys = attended.keys.of_heads(heads)
        return replace(attended, q=q, k=k, v=v, keys=keys, sinks=sinks)

    def in_groups(
        self, attended: Attended[mx.array], size: int, *, late: bool
    ) -> Attended[mx.array]:
        """Attend within groups of tokens, as if they were documents."""
        return attention.in_groups(attended, size, late=late)

    def heads_together(self, parts: Sequence[mx.array]) -> mx.array:
        """Put heads beside each other."""
        return mx.concatenate(list(parts), axis=1)

    def attend_all(self, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Attend to keys that all queries see."""
        return attention.attend_all(q, k, v, scale)

    def cached_rows(self) -> int:
        """Return the number of caches."""
        return len(self.layout.caches)

    def cached(self, row: int, attended: Attended[mx.array]) -> Attended[mx.array]:
        """Write a row's keys and values behind the cached ones and attend to all of them."""
        cache, source = self.layout.caches[row], attended.rule.source
        start, stop = cache.length, cache.length + cache.arriving
        layer = self.layer if source is None else source
        keys, values = cache.keys[layer], cache.values[layer]
        if source is None:
            keys[:, :, start:stop] = attended.k[:, :, : cache.arriving]  # no padding behind
            values[:, :, start:stop] = attended.v[:, :, : cache.arriving]
        attended = replace(attended, q=attended.q[:, :, : cache.arriving])
        return attended.with_keys(keys[:, :, :stop], values[:, :, :stop], attended.keys)

    def filled(self, x: mx.array, like: mx.array) -> mx.array:
        """Put zeros behind the positions of x."""
        missing = like.shape[2] - x.shape[2]
        return mx.pad(x, [(0, 0), (0, 0), (0, missing), (0, 0)]) if missing else x

    def first_pass(self) -> bool:
        """Return whether the caches were empty when this pass began."""
        return self.layout.caches[0].length == 0

    def mix(
        self, mixer: Recurrent, inputs: Sequence[mx.array], trained: Mapping[str, mx.array]
    ) -> mx.array:
        """Carry a state within documents, or on from what is cached."""
        own = mixer.own(self.block.mixer, trained)
        tile, documents = self.layout.tile, self.layout.documents
        if tile is not None and mixer.state:
            go_on = mixers.mixed_in_tile(mixer)
            y, tile.behind = go_on(mixer, inputs, own, documents, tile.state, tile.before)
            return y
        if not self.layout.caches:
            return mixers.mixed(mixer)(mixer, inputs, own, documents)
        after = mixers.mixed_after(mixer)
        return self._carried(lambda last, *parts: after(mixer, parts, own, last), *inputs)

    # what is trained

    def low_rank(
        self, x: mx.array, a: mx.array, b: mx.array, scale: float, dropout: Dropout | None
    ) -> mx.array:
        """Multiply by a low-rank update alone."""
        return linear.low_rank(x, a, b, scale, self._placed(dropout))

    def trained_linear(self, x: mx.array, weight: mx.array) -> mx.array:
        """Multiply by a trained matrix."""
        return trained.trained_linear(x, weight)

    def add_bias(self, y: mx.array, bias: mx.array) -> mx.array:
        """Add a trained bias."""
        return trained.add_bias(y, bias)

    def times(self, x: mx.array, vector: mx.array) -> mx.array:
        """Multiply by a trained vector."""
        return x * vector.flatten().astype(x.dtype)

    def times_ratio(self, x: mx.array, above: mx.array, below: mx.array) -> mx.array:
        """Multiply by the ratio of two vectors."""
        return linear.recomputed(_times)(x, above / below)

    def times_heads(self, x: mx.array, vector: mx.array) -> mx.array:
        """Multiply each head by its number."""
        return x * vector.astype(x.dtype)[:, None, None]

    def replaced(self, x: mx.array, prompt: mx.array) -> mx.array:
        """Put a trained prompt at the first positions."""
        wide, positions = prompt.astype(x.dtype), self.layout.positions
        rows = wide[mx.minimum(positions, len(wide) - 1)]
        return mx.where((positions < len(wide))[..., None], rows, x)

    def cast(self, trained: mx.array) -> mx.array:
        """Return a trained tensor in the type of activations."""
        return trained.astype(self.dtype)

    # small tensors, in float32

    def float32_linear(self, x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        """Multiply trained tensors."""
        return x @ weight.T + bias

    def tanh(self, x: mx.array) -> mx.array:
        """Return tanh of x."""
        return mx.tanh(x)

    def some_rows(self, trained: mx.array, rows: slice) -> mx.array:
        """Return rows of a trained tensor."""
        return trained[rows]

    def some_columns(self, trained: mx.array, columns: slice) -> mx.array:
        """Return columns of a trained tensor."""
        return trained[:, columns]

    def keys_values(self, flat: mx.array, heads: int) -> tuple[mx.array, mx.array]:
        """Return k and v (1, G, P, h) of flat (P, 2 G h)."""
        by_head = flat.astype(self.dtype).reshape(len(flat), 2, heads, -1)
        both = by_head.transpose(1, 2, 0, 3)[:, None]
        return both[0], both[1]

    def fastfood(
        self, vector: mx.array, signs: mx.array, order: mx.array, gaussian: mx.array,
        scale: mx.array, size: tuple[int, int],
    ) -> mx.array:  # fmt: skip
        """Return a random projection of a trained vector as a matrix."""
        return trained.fastfood(vector, signs, order, gaussian, scale, size)

    def scaled_matrix(self, rows: mx.array, matrix: mx.array, columns: mx.array) -> mx.array:
        """Scale the rows and columns of a constant matrix."""
        return trained.scaled_matrix(rows, matrix, columns)

    # element by element, and views

    def activation(self, x: mx.array, name: str) -> mx.array:
        """Return the named activation of x."""
        if name == "xielu":
            return xielu.xielu(x, self.block.mixer)
        return pointwise.plain_activation(x, name)

    def gated(self, gate: mx.array, up: mx.array, name: str) -> mx.array:
        """Return ``activation(gate) * up``."""
        return pointwise.gated_activation(gate, up, name)

    def add(self, x: mx.array, y: mx.array) -> mx.array:
        """Return ``x + y``."""
        return x + y

    def subtract(self, x: mx.array, y: mx.array) -> mx.array:
        """Return ``x - y``."""
        return x - y

    def scaled(self, x: mx.array, factor: float) -> mx.array:
        """Return ``factor x``."""
        return x * factor

    def split(self, x: mx.array, widths: Sequence[int]) -> Sequence[mx.array]:
        """Return parts of the last axis."""
        ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
        return list(mx.split(x, ends, axis=-1))

    def split_by_head(self, x: mx.array, heads: int, widths: Sequence[int]) -> Sequence[mx.array]:
        """Return the parts of each head."""
        by_head = x.reshape(*x.shape[:-1], heads, -1)
        return [part.flatten(2) for part in self.split(by_head, widths)]

    def to_heads(self, x: mx.array, size: int) -> mx.array:
        """Return (B, S, heads, size)."""
        return x.reshape(*x.shape[:2], -1, size)

    def heads_first(self, x: mx.array) -> mx.array:
        """Return (B, heads, S, h)."""
        return x.swapaxes(1, 2)

    def from_heads(self, x: mx.array) -> mx.array:
        """Return (B, S, heads * h)."""
        return x.swapaxes(1, 2).flatten(2)

    # several adapters in one batch

    def rows(self, x: mx.array, rows: slice) -> mx.array:
        """Return some rows."""
        return x[rows]

    def attended_rows(self, attended: Attended[mx.array], rows: slice) -> Attended[mx.array]:
        """Return the attention of some rows."""
        q, k, v = (x[rows] for x in (attended.q, attended.k, attended.v))
        return replace(attended, q=q, k=k, v=v, keys=attended.keys.of_rows(rows))

    def concatenated(self, parts: Sequence[mx.array]) -> mx.array:
        """Return the rows of all parts."""
        return mx.concatenate(list(parts))

    def of_rows(self, rows: slice) -> MlxOps:
        """Return the operations on some rows."""
        return replace(self, layout=self.layout.of_rows(rows))

    def unpacked_once(self, role: str) -> MlxOps:  # noqa: ARG002
        """Return the same: a graph has one dense form of a matrix already."""
        return self

    def _carried(self, go_on: Callable[..., tuple[mx.array, Any]], *inputs: mx.array) -> mx.array:
        """Return what comes of each row's tokens after those before, and keep what goes on.

        ``go_on`` is given what it returned for a row's tokens before, None at the beginning.
        """
        outputs, positions = [], inputs[0].shape[1]
        for row, cache in enumerate(self.layout.caches):
            before = cache.carried[self.layer] if cache.length else None
            parts = (x[row : row + 1, : cache.arriving] for x in inputs)
            out, cache.carried[self.layer] = go_on(before, *parts)
            outputs.append(mx.pad(out, [(0, 0), (0, positions - cache.arriving), (0, 0)]))
        return mx.concatenate(outputs)

    def _placed(self, dropout: Dropout | None) -> Dropout | None:
        """Return what is dropped of the tokens of a tile."""
        tile = self.layout.tile
        return dropout if dropout is None or tile is None else replace(dropout, start=tile.start)

    def _matrix(self, role: str) -> Matrix:
        return self.block.matrices[role].serialized(self.sequencer)


def _times(x: mx.array, factor: mx.array) -> mx.array:
    return x * factor.astype(x.dtype)
