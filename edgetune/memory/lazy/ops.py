"""The operations of :mod:`edgetune.network.ops` on arrays without numbers, as MLX computes them.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgetune.altup import AltUp
from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.lazy import (
    attention,
    experts,
    linear,
    mixers,
    pointwise,
    routing,
    streams,
)
from edgetune.memory.lazy.arrays import counted, gathered, matmul
from edgetune.memory.lazy.attention import Keys
from edgetune.memory.lazy.elementwise import (
    add,
    cast,
    compared,
    divide,
    multiply,
    subtract,
    tanh,
    times,
    where,
)
from edgetune.memory.lazy.gradients import recomputed
from edgetune.memory.lazy.graph import Array, given
from edgetune.memory.lazy.tile_attention import LazyTile, attend_in_tile
from edgetune.memory.lazy.views import (
    broadcast,
    concatenate,
    cut,
    expand,
    flatten,
    pad,
    reshape,
    split,
    squeeze,
    swapaxes,
    transpose,
)
from edgetune.memory.lazy.weights import FrozenBlock
from edgetune.mixer import Recurrent
from edgetune.network.ops import Attended, Dropout, ExpertUpdates, KeptNorms, Key
from edgetune.shape import BlockShape, Experts, ModelShape, Rotary
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class LazyOps:
    """One block's operations in one pass."""

    shape: ModelShape
    batch: BatchShape
    frozen: FrozenBlock
    layer: int = 0
    given: tuple[Array, ...] = ()
    """Keys and values of another block, if this one reads them."""
    lending: list[Array] = field(default_factory=list)
    """Those that later blocks read."""
    tile: LazyTile | None = None
    """The tile of the block that is computed, if it is not all of it."""

    @property
    def own(self) -> BlockShape:
        """The shape of the block."""
        return self.shape.blocks[self.layer]

    # what is frozen

    def embedding(self, tokens: Array, scale: float, table: Array | None = None) -> Array:
        """Look embeddings (B, S, D) up."""
        shape = (*tokens.shape, self.shape.hidden_size)
        stored = self.batch.stored if table is None else FLOAT32_BYTES
        x = cast(counted(shape, stored), self.batch.width)
        return x if scale == 1.0 else times(x)

    def position_embedding(self) -> Array:
        """Look embeddings of positions up."""
        shape = (self.batch.batch, self.batch.context, self.shape.hidden_size)
        return cast(counted(shape, self.batch.stored), self.batch.width)

    def linear(self, role: str, x: Array, *, bias: bool = True) -> Array:
        """Multiply by a frozen matrix."""
        added = self._bias(role) if bias else None
        return linear.frozen_linear(x, self.frozen.matrices[role], added)

    def lora_linear(
        self, role: str, x: Array, a: Array, b: Array, scale: float, dropout: Dropout | None,
        *, bias: bool = True, fixed: bool = False,
    ) -> Array:  # fmt: skip
        """Multiply by a frozen matrix and a low-rank update."""
        del scale
        update = linear.half_fixed if fixed else linear.low_rank
        added = update(x, a, b, drops=dropout is not None)
        return add(self.linear(role, x, bias=bias), added)

    def bias(self, role: str, y: Array) -> Array:
        """Add a frozen bias."""
        bias = self._bias(role)
        return y if bias is None else add(y, cast(bias, y.width))

    def norm(
        self, role: str, x: Array, weight: Array | None = None, bias: Array | None = None
    ) -> Array:
        """Normalise x."""
        ends = {"final": self.shape.final_norm, "embedding": self.shape.embedding_norm}
        norm = ends.get(role) or self.own.norm_by_role[role]
        kind = norm.kind or self.shape.norm
        if norm.plain:
            return pointwise.norm(x, kind, None, None)
        weight = self.frozen.vector(norm.size) if weight is None else weight
        if bias is None and norm.bias:
            bias = self.frozen.vector(norm.size)
        return pointwise.norm(x, kind, weight, bias)

    def row_norms(
        self, key: Key, a: Array, b: Array, scale: float, kept: KeptNorms[Array]
    ) -> Array:
        """Make the norms of a matrix's rows."""
        del scale, kept
        return linear.row_norms(self.frozen.matrices[key[1]], a, b)

    # a mixture of experts

    def route(self, x: Array, rule: Experts) -> tuple[Array, Array]:
        """Choose experts."""
        tensors = {str(each.role): self.frozen.tensor(each.shape) for each in rule.tensors}
        return routing.route(x, routing.Router(rule, tensors))

    def experts(
        self, x: Array, weights: Array, chosen: Array, rule: Experts, activation: str,
        updates: ExpertUpdates[Array],
    ) -> Array:  # fmt: skip
        """Send each token through its experts."""
        matrices = {
            str(role): self.frozen.matrices[f"experts.{role}"] for role, _ in rule.projections
        }
        biases = {
            role: self.frozen.tensor((rule.number, matrix.shape[0] // rule.number))
            for role, matrix in matrices.items()
        } if rule.biased else {}  # fmt: skip
        kind = FLOAT32_BYTES if self.batch.unpacks else self.batch.width
        own = experts.FrozenExperts(rule, activation, matrices, biases, chosen, kind, updates)
        return experts.mixed(x, weights, own)

    def shared(self, x: Array, y: Array) -> Array:
        """Multiply by a share a token."""
        return experts.shared(x, y, self.frozen.tensor((1, self.shape.hidden_size)))

    # what tokens are to each other

    def rotate(self, x: Array, rotary: Rotary) -> Array:
        """Rotate x (B, heads, S, h)."""
        return pointwise.rotate(x, rotary, self.batch.documents)

    def with_shared(self, k: Array, shared: Array) -> Array:
        """Put what all heads share behind the channels of each."""
        return concatenate([k, broadcast(shared, (*k.shape[:3], shared.shape[3]))], -1)

    def channels(self, x: Array, size: int) -> Array:
        """Put zeros behind channels, or leave the last ones out."""
        missing = size - x.shape[-1]
        return cut(x, -1, 0, size) if missing <= 0 else pad(x, len(x.shape) - 1, missing)

    def keys(self, k: Array, v: Array) -> Keys:
        """Return whether rows hold several documents."""
        if self.tile is not None:
            self.tile.own = k, v
        return Keys(self.batch.documents > 1, forked=self.batch.forked)

    def attend(self, attended: Attended[Array], before: tuple[Array, Array] | None = None) -> Array:
        """Attend, to keys in front of those of every document too."""
        if self.tile is not None:
            return attend_in_tile(attended, self.tile, before)
        if before is not None:
            keys = replace(attended.keys, before=before[0].shape[2])
            pairs = zip((attended.k, attended.v), before, strict=True)
            k, v = (attention.preceded(own, front) for own, front in pairs)
            attended = attended.with_keys(k, v, keys)
        return attention.causal(attended)

    def sinks(self) -> Array:
        """Return the scores of sinks."""
        return self.frozen.vector(self.own.heads)

    def lend(self, k: Array, v: Array) -> None:
        """Keep k and v for later blocks."""
        self.lending.extend((k, v))

    def lent(self, layer: int) -> tuple[Array, Array]:
        """Return what an earlier block has lent."""
        del layer
        k, v = self.given
        return k, v

    def per_layer_input(self) -> Array:
        """Return numbers that live through the whole pass."""
        return given((self.batch.batch, self.batch.context, self.own.per_layer), self.batch.width)

    def frozen_times(self, x: Array, role: str) -> Array:
        """Multiply by a frozen tensor of the block."""
        return multiply(x, cast(self._frozen_tensors()[role], x.width))

    # several streams

    def parted_streams(self, x: Array, rule: AltUp) -> Array:
        """Begin the streams."""
        return counted((*x.shape[:-1], rule.count * x.shape[-1]), x.width)

    def joined_streams(self, x: Array, rule: AltUp) -> Array:
        """Average the streams."""
        size = x.shape[-1] // rule.count
        return streams.joined(x, [self.frozen.tensor((size, size)) for _ in rule.exits])

    def predicted(self, x: Array, routed: Array) -> Array:
        """Mix the streams."""
        own = self._frozen_tensors()
        return streams.predicted(x, routed, own["altup_router"], own["altup_prediction"])

    def corrected(self, x: Array, made: Array, routed: Array) -> Array:
        """Move the streams."""
        own, rule = self._frozen_tensors(), self.own.altup
        assert rule is not None
        router, weight = own["altup_router"], own["altup_correction"]
        return streams.corrected(x, made, routed, router, weight, active=rule.active)

    def added_behind(self, x: Array, y: Array) -> Array:
        """Add to all streams but the first."""
        return streams.added_behind(x, y)

    def above(self, x: Array, deviations: float) -> Array:  # noqa: ARG002
        """Let through what is far above the mean."""
        return streams.above(x)

    def some_heads(self, attended: Attended[Array], heads: slice) -> Attended[Array]:
        """Attend with some heads."""
        count = attended.k.shape[1]
        shared = attended.q.shape[1] // count
        start, stop, _ = heads.indices(count)
        k, v = (cut(x, 1, start, stop) for x in (attended.k, attended.v))
        q = cut(attended.q, 1, start * shared, stop * shared)
        sinks = attended.sinks
        sinks = None if sinks is None else cut(sinks, 0, start * shared, stop * shared)
        return replace(attended, q=q, k=k, v=v, sinks=sinks)

    def in_groups(self, attended: Attended[Array], size: int, *, late: bool) -> Attended[Array]:
        """Attend within groups of tokens, as if they were documents."""
        longest = size + (size // 2 if late else 0)
        rule = attended.rule
        window = longest if rule.window is None else min(rule.window, longest)
        keys = replace(attended.keys, documents=True)
        return replace(attended, keys=keys, rule=replace(rule, window=window))

    def heads_together(self, parts: Sequence[Array]) -> Array:
        """Put heads beside each other."""
        return concatenate(parts, 1)

    def attend_all(self, q: Array, k: Array, v: Array, scale: float) -> Array:
        """Attend to keys that all queries see."""
        del scale
        return attention.attend_all(q, k, v)

    def cached_rows(self) -> int:
        """Return 0: this is no generation."""
        return 0

    def cached(self, row: int, attended: Attended[Array]) -> Attended[Array]:
        """Return attention as it is."""
        del row
        return attended

    def filled(self, x: Array, like: Array) -> Array:
        """Return x, of which nothing is missing."""
        del like
        return x

    def first_pass(self) -> bool:
        """Return that nothing is cached."""
        return True

    def mix(self, mixer: Recurrent, inputs: Sequence[Array], trained: Mapping[str, Array]) -> Array:
        """Carry a state within documents."""
        frozen = {each.role: self.frozen.tensor(each.shape) for each in mixer.tensors}
        own, documents, tile = mixer.own(frozen, trained), self.batch.documents > 1, self.tile
        if tile is not None and mixer.state:
            go_on = mixers.mixed_in_tile(mixer)
            out, tile.behind = go_on(
                mixer, inputs, own, tile.state, tile.before, documents=documents
            )
            return out
        return mixers.mixed(mixer)(mixer, inputs, own, documents=documents)

    # what is trained

    def low_rank(
        self, x: Array, a: Array, b: Array, scale: float, dropout: Dropout | None
    ) -> Array:
        """Multiply by a low-rank update alone."""
        del scale
        return linear.low_rank(x, a, b, drops=dropout is not None)

    def trained_linear(self, x: Array, weight: Array) -> Array:
        """Multiply by a trained matrix."""
        return linear.trained_linear(x, weight)

    def add_bias(self, y: Array, bias: Array) -> Array:
        """Add a trained bias."""
        return linear.add_bias(y, bias)

    def times(self, x: Array, vector: Array) -> Array:
        """Multiply by a trained vector."""
        return multiply(x, cast(flatten(vector), x.width))

    def times_ratio(self, x: Array, above: Array, below: Array) -> Array:
        """Multiply by the ratio of two vectors."""
        ratio = divide(above, below)
        return recomputed(lambda x, factor: multiply(x, cast(factor, x.width)), x, ratio)

    def times_heads(self, x: Array, vector: Array) -> Array:
        """Multiply each head by its number."""
        return multiply(x, expand(cast(vector, x.width), 1, 2))

    def replaced(self, x: Array, prompt: Array) -> Array:
        """Put a trained prompt at the first positions."""
        rows = gathered(cast(prompt, x.width), counted(x.shape[:2]), x.shape)
        return where(compared(counted((*x.shape[:2], 1))), rows, x)

    def cast(self, trained: Array) -> Array:
        """Return a trained tensor in the type of activations."""
        return cast(trained, self.batch.width)

    # small tensors, in float32

    def float32_linear(self, x: Array, weight: Array, bias: Array) -> Array:
        """Multiply trained tensors."""
        return add(matmul(x, swapaxes(weight, 0, 1)), bias)

    def tanh(self, x: Array) -> Array:
        """Return tanh of x."""
        return tanh(x)

    def some_rows(self, trained: Array, rows: slice) -> Array:
        """Return rows of a trained tensor."""
        start, stop, _ = rows.indices(trained.shape[0])
        return cut(trained, 0, start, stop)

    def some_columns(self, trained: Array, columns: slice) -> Array:
        """Return columns of a trained tensor."""
        start, stop, _ = columns.indices(trained.shape[1])
        return cut(trained, 1, start, stop)

    def keys_values(self, flat: Array, heads: int) -> tuple[Array, Array]:
        """Return k and v (1, G, P, h) of flat (P, 2 G h)."""
        length, both = flat.shape
        by_head = reshape(cast(flat, self.batch.width), (length, 2, heads, both // (2 * heads)))
        each = expand(transpose(by_head, (1, 2, 0, 3)), 1)
        k, v = (squeeze(cut(each, 0, i, i + 1), 0) for i in range(2))
        return k, v

    def fastfood(
        self, vector: Array, signs: Array, order: Array, gaussian: Array, scale: Array,
        size: tuple[int, int],
    ) -> Array:  # fmt: skip
        """Project a vector randomly to a matrix."""
        del order
        return linear.fastfood(vector, signs, gaussian, scale, size)

    def scaled_matrix(self, rows: Array, matrix: Array, columns: Array) -> Array:
        """Scale the rows and columns of a constant matrix."""
        return linear.scaled_matrix(rows, matrix, columns)

    # element by element, and views

    def activation(self, x: Array, name: str) -> Array:
        """Apply an activation."""
        if name == "xielu":
            return pointwise.xielu(x)
        return pointwise.plain_activation(x, name)

    def gated(self, gate: Array, up: Array, name: str) -> Array:
        """Combine a gate and what it lets through."""
        return pointwise.gated_activation(gate, up, name)

    def add(self, x: Array, y: Array) -> Array:
        """Return ``x + y``."""
        return add(x, y)

    def subtract(self, x: Array, y: Array) -> Array:
        """Return ``x - y``."""
        return subtract(x, y)

    def scaled(self, x: Array, factor: float) -> Array:
        """Return a multiple of x."""
        return times(x, factor)

    def split(self, x: Array, widths: Sequence[int]) -> Sequence[Array]:
        """Return parts of the last axis."""
        return split(x, widths)

    def split_by_head(self, x: Array, heads: int, widths: Sequence[int]) -> Sequence[Array]:
        """Return the parts of each head."""
        by_head = reshape(x, (*x.shape[:-1], heads, x.shape[-1] // heads))
        return [flatten(part, 2) for part in split(by_head, widths)]

    def to_heads(self, x: Array, size: int) -> Array:
        """Return (B, S, heads, size)."""
        return reshape(x, (*x.shape[:2], x.shape[-1] // size, size))

    def heads_first(self, x: Array) -> Array:
        """Return (B, heads, S, h)."""
        return swapaxes(x, 1, 2)

    def from_heads(self, x: Array) -> Array:
        """Return (B, S, heads * h)."""
        return flatten(swapaxes(x, 1, 2), 2)

    # several adapters in one batch

    def rows(self, x: Array, rows: slice) -> Array:
        """Return some rows."""
        start, stop, _ = rows.indices(x.shape[0])
        return cut(x, 0, start, stop)

    def attended_rows(self, attended: Attended[Array], rows: slice) -> Attended[Array]:
        """Return the attention of some rows."""
        q, k, v = (self.rows(x, rows) for x in (attended.q, attended.k, attended.v))
        return replace(attended, q=q, k=k, v=v)

    def concatenated(self, parts: Sequence[Array]) -> Array:
        """Return the rows of all parts."""
        return concatenate(parts, 0)

    def of_rows(self, rows: slice) -> Any:
        """Return the operations on some rows."""
        raise NotImplementedError

    def unpacked_once(self, role: str) -> LazyOps:
        """Return the same."""
        del role
        return self

    def _bias(self, role: str) -> Array | None:
        own = self.own.linear_by_role[role]
        return self.frozen.vector(own.outputs) if own.bias else None

    def _frozen_tensors(self) -> dict[str, Array]:
        """Return the block's tensors that are neither projections nor norms, by role."""
        return {x.role: self.frozen.tensor(x.shape) for x in self.own.mixer_tensors}
