"""The operations of :mod:`edgetune.network.ops`, counted as torch pays for them.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgetune.altup import AltUp
from edgetune.mixer import Recurrent
from edgetune.network.ops import Attended, Dropout, ExpertUpdates, KeptNorms, Key
from edgetune.shape import Experts, ModelShape, Rotary
from edgetune.speed import mixers
from edgetune.speed.counted import Counted, outside
from edgetune.speed.mixtures import Mixing
from edgetune.speed.rows import Rows
from edgetune.storage import FLOAT32_BYTES


class CountedOps(Mixing):
    """One block's operations in both passes."""

    def __init__(
        self, shape: ModelShape, rows: Rows, layer: int = 0, *, to_lender: bool = False
    ) -> None:
        """Begin passes; ``to_lender``: whether keys and values of another block want gradients."""
        super().__init__(rows)
        self.shape = shape
        self.own = shape.blocks[layer]
        self.to_lender = to_lender

    # what is frozen

    def embedding(self, tokens: Counted, scale: float, table: Counted | None = None) -> Counted:
        """Look embeddings (B, S, D) up; gradients are added to those of a trained table's rows."""
        x = self._looked_up((*tokens.shape, self.shape.hidden_size))
        if table is not None and table.needs:
            x = Counted(x.shape, x.width, needs=True)
            self.back.count(5 + self.batch.narrow, 3 * FLOAT32_BYTES * x.numbers)
        return x if scale == 1.0 else self.scaled(x, scale)

    def position_embedding(self) -> Counted:
        """Look embeddings of positions up."""
        return self._looked_up((self.batch.batch, self.batch.context, self.shape.hidden_size))

    def linear(self, role: str, x: Counted, *, bias: bool = True) -> Counted:
        """Multiply by a frozen matrix."""
        linear = self.own.linear_by_role[role]
        return self.product(x, linear, bias=bias and linear.bias)

    def lora_linear(
        self, role: str, x: Counted, a: Counted, b: Counted, scale: float,
        dropout: Dropout | None, *, bias: bool = True, fixed: bool = False,
    ) -> Counted:  # fmt: skip
        """Multiply by a frozen matrix and a low-rank update."""
        del scale
        self.ahead.launches += fixed
        linear = self.own.linear_by_role[role]
        return self.low_rank_product(
            x, a, b, linear, bias=bias and linear.bias, dropout=dropout is not None
        )

    def bias(self, role: str, y: Counted) -> Counted:
        """Add a frozen bias."""
        linear = self.own.linear_by_role[role]
        if not linear.bias:
            return y
        bias = self.as_width(outside((linear.outputs,), self.batch.stored), y.width)
        return self.with_vector(y, bias, times=False)

    def norm(
        self, role: str, x: Counted, weight: Counted | None = None, bias: Counted | None = None
    ) -> Counted:
        """Normalise x."""
        shape = self.shape
        ends = {"final": shape.final_norm, "embedding": shape.embedding_norm}
        norm = ends.get(role) or self.own.norm_by_role[role]
        kind, stored = norm.kind or shape.norm, outside((norm.size,), self.batch.stored)
        gain = None if norm.plain else self.gain(stored if weight is None else weight, kind)
        if kind.kind == "rms":
            self.ahead.launches += 3 * (kind.groups > 1)
            return self.rms_norm(x, gain)
        wide = self.as_width(stored if bias is None else bias, FLOAT32_BYTES) if norm.bias else None
        return self.layer_norm(x, gain, wide)

    def row_norms(
        self, key: Key, a: Counted, b: Counted, scale: float, kept: KeptNorms[Counted]
    ) -> Counted:
        """Make the norms of a matrix's rows, once for each state of what is trained."""
        del b, scale
        linear = self.own.linear_by_role[key[1]]
        if key not in kept.norms:
            self.row_norms_of(linear, a.shape[0])
            kept.norms[key] = outside((linear.outputs,), FLOAT32_BYTES)
        return kept.norms[key]

    # a mixture of experts

    def route(self, x: Counted, rule: Experts) -> tuple[Counted, Counted]:
        """Choose experts."""
        return self.routed(x, rule)

    def shared(self, x: Counted, y: Counted) -> Counted:
        """Multiply by a share a token."""
        return self.shared_part(x, y)

    def experts(
        self, x: Counted, weights: Counted, chosen: Counted, rule: Experts, activation: str,
        updates: ExpertUpdates[Counted],
    ) -> Counted:  # fmt: skip
        """Send each token through its experts."""
        del chosen, rule, activation
        return self.mixture(x, weights, self.own, updates)

    # what tokens are to each other

    def rotate(self, x: Counted, rotary: Rotary) -> Counted:
        """Rotate x (B, heads, S, h)."""
        return self.rotated(x, rotary)

    def with_shared(self, k: Counted, shared: Counted) -> Counted:
        """Put what all heads share behind the channels of each."""
        size = (*k.shape[:3], k.shape[3] + shared.shape[3])
        out = self.made(size, k.width, (k, shared))
        self.ahead.count(2, 2 * out.nbytes)
        self.back.count(5 * k.needs + 2 * shared.needs, 2 * k.nbytes + out.nbytes)
        return out

    def channels(self, x: Counted, size: int) -> Counted:
        """Put zeros behind channels, or leave the last ones out."""
        if size == x.shape[-1]:
            return x
        out = self.made((*x.shape[:-1], size), x.width, (x,))
        self.ahead.count(1, 2 * out.nbytes)
        if x.needs:
            self.back.count(1, 2 * x.nbytes)
        return out

    def keys(self, k: Counted, v: Counted) -> None:
        """Return nothing: which keys are seen follows from the rows."""
        del k, v

    def attend(
        self, attended: Attended[Counted], before: tuple[Counted, Counted] | None = None
    ) -> Counted:
        """Attend, to keys in front of those of every document too."""
        q, k, v, rule = attended.q, attended.k, attended.v, attended.rule
        if before is None:
            return self.attention(q, k, v, rule)
        nothing = self._given((1, q.shape[1], before[0].shape[2], q.shape[3]), q.width)
        q, k, v = (
            self.behind(x, front) for x, front in zip((q, k, v), (nothing, *before), strict=True)
        )
        return self.sliced(self.attention(q, k, v, rule), *attended.q.shape)

    def sinks(self) -> Counted:
        """Return the scores of sinks."""
        return outside((self.own.heads,), self.batch.stored)

    def lend(self, k: Counted, v: Counted) -> None:
        """Keep k and v, which takes nothing."""

    def lent(self, layer: int) -> tuple[Counted, Counted]:
        """Return keys and values that another block made."""
        block = self.shape.blocks[layer]
        size = (self.batch.batch, block.kv_heads, self.batch.context, block.head_dim)
        k, v = (Counted(size, self.batch.width, self.to_lender) for _ in range(2))
        return k, v

    def per_layer_input(self) -> Counted:
        """Return the block's own numbers of each token."""
        size = (self.batch.batch, self.batch.context, self.own.per_layer)
        return outside(size, self.batch.width)

    def frozen_times(self, x: Counted, role: str) -> Counted:  # noqa: ARG002
        """Multiply by a frozen tensor of the block."""
        return self.pointwise(x)

    # several streams

    def parted_streams(self, x: Counted, rule: AltUp) -> Counted:
        """Begin the streams: once a micro-batch."""
        self._count_projected(x, rule, back=False)
        return self.made((*x.shape[:-1], rule.count * x.shape[-1]), x.width, (x,))

    def joined_streams(self, x: Counted, rule: AltUp) -> Counted:
        """Average the streams: once a micro-batch."""
        out = self.made((*x.shape[:-1], x.shape[-1] // rule.count), x.width, (x,))
        self._count_projected(out, rule, back=x.needs)
        return out

    def _count_projected(self, x: Counted, rule: AltUp, *, back: bool) -> None:
        """Count projections of all streams but the first, each as large as x, and their sizes."""
        others, wide, pieces = rule.count - 1, FLOAT32_BYTES * x.numbers, self.pieces(x)
        products = 2 * others * x.numbers * x.shape[-1]
        self.ahead.products += products
        self.ahead.count(pieces * (8 + 12 * others), 10 * others * wide)
        if back:  # which projects them again
            self.back.products += 2 * products
            self.back.count(pieces * (16 + 24 * others), 24 * others * wide)

    def predicted(self, x: Counted, routed: Counted) -> Counted:
        """Mix the streams."""
        return self.streamed(x, (x, routed), ahead=22, back=34)

    def corrected(self, x: Counted, made: Counted, routed: Counted) -> Counted:
        """Move the streams."""
        return self.streamed(x, (x, made, routed), ahead=24, back=44)

    def added_behind(self, x: Counted, y: Counted) -> Counted:
        """Add to all streams but the first."""
        return self.done(
            self.made(x.shape, x.width, (x, y)), (x, y), (5, 4 * x.nbytes), (4, 2 * x.nbytes)
        )

    def above(self, x: Counted, deviations: float) -> Counted:  # noqa: ARG002
        """Let through what is far above the mean."""
        return self.streamed(x, (x,), ahead=12, back=20)

    def some_heads(self, attended: Attended[Counted], heads: slice) -> Attended[Counted]:
        """Attend with some heads."""
        count = attended.k.shape[1]
        some = len(range(*heads.indices(count)))
        q, k, v = (
            self.sliced(x, x.shape[0], x.shape[1] // count * some, *x.shape[2:])
            for x in (attended.q, attended.k, attended.v)
        )
        return replace(attended, q=q, k=k, v=v)

    def in_groups(self, attended: Attended[Counted], size: int, *, late: bool) -> Attended[Counted]:
        """Attend within groups, which is counted as attention to all."""
        del size, late
        return attended

    def heads_together(self, parts: Sequence[Counted]) -> Counted:
        """Put heads beside each other."""
        rows, _, *rest = parts[0].shape
        return self.joined(parts, (rows, sum(part.shape[1] for part in parts), *rest))

    def attend_all(self, q: Counted, k: Counted, v: Counted, scale: float) -> Counted:
        """Attend to keys that all queries see."""
        del scale
        return self.attention_to_all(q, k, v)

    def cached_rows(self) -> int:
        """Return that there are no caches: this is no generation."""
        return 0

    def cached(self, row: int, attended: Attended[Counted]) -> Attended[Counted]:
        """Return the same: there are no caches."""
        del row
        return attended

    def filled(self, x: Counted, like: Counted) -> Counted:
        """Return x: there are no caches."""
        del like
        return x

    def first_pass(self) -> bool:
        """Return that nothing is cached."""
        return True

    def mix(
        self, mixer: Recurrent, inputs: Sequence[Counted], trained: Mapping[str, Counted]
    ) -> Counted:
        """Carry a state within documents."""
        stored = self.batch.stored
        frozen = {each.role: outside(each.shape, stored) for each in mixer.tensors}
        return mixers.mixed(mixer)(self, mixer, inputs, mixer.own(frozen, trained))

    # what is trained

    def low_rank(
        self, x: Counted, a: Counted, b: Counted, scale: float, dropout: Dropout | None
    ) -> Counted:
        """Multiply by a low-rank update alone."""
        if dropout is not None:
            self.drawn(self.ahead, x, times=2)
            x = self.pointwise(x)
        a, b = self.as_width(a, x.width), self.as_width(b, x.width)
        return self.scaled(self.matmul(self.matmul(x, a, a.shape[0]), b, b.shape[0]), scale)

    def trained_linear(self, x: Counted, weight: Counted) -> Counted:
        """Multiply by a trained matrix."""
        return self.trained_product(x, weight)

    def add_bias(self, y: Counted, bias: Counted) -> Counted:
        """Add a trained bias."""
        self.ahead.launches += self.batch.narrow
        return self.with_vector(y, bias, times=False)

    def times(self, x: Counted, vector: Counted) -> Counted:
        """Multiply by a trained vector."""
        flat = self.view(vector, vector.numbers)
        return self.with_vector(x, self.as_width(flat, x.width), times=True)

    def times_ratio(self, x: Counted, above: Counted, below: Counted) -> Counted:
        """Multiply by the ratio of two vectors, the lower one a constant."""
        del below
        return self.with_vector(x, self.as_width(self.pointwise(above), x.width), times=True)

    def times_heads(self, x: Counted, vector: Counted) -> Counted:
        """Multiply each head by its number."""
        column = self.view(self.as_width(vector, x.width), vector.numbers, launches=3, back=3)
        return self.with_vector(x, column, times=True)

    def replaced(self, x: Counted, prompt: Counted) -> Counted:
        """Put a trained prompt at the first positions."""
        rows = self.as_width(prompt, x.width)
        out = self.made(x.shape, x.width, (x, rows))
        self.ahead.count(5, 5 * x.nbytes)
        if rows.needs:
            self.back.count(4, 5 * x.nbytes)
        return out

    def cast(self, trained: Counted) -> Counted:
        """Return a trained tensor in the type of activations."""
        return self.as_width(trained, self.batch.width)

    # small tensors, in float32

    def float32_linear(self, x: Counted, weight: Counted, bias: Counted) -> Counted:
        """Multiply trained tensors."""
        return self.with_vector(self.matmul(x, weight, weight.shape[0]), bias, times=False)

    def tanh(self, x: Counted) -> Counted:
        """Apply tanh."""
        return self.saving_output(x)

    def some_rows(self, trained: Counted, rows: slice) -> Counted:
        """Return a view, whose gradient is added to a part of the tensor's."""
        self.ahead.launches += 3 if trained.needs else 1
        count = len(range(*rows.indices(trained.shape[0])))
        return Counted((count, *trained.shape[1:]), trained.width, trained.needs, given=True)

    def some_columns(self, trained: Counted, columns: slice) -> Counted:
        """Return a view, whose gradient gets the size of the tensor."""
        return self.sliced(
            trained, trained.shape[0], len(range(*columns.indices(trained.shape[1])))
        )

    def keys_values(self, flat: Counted, heads: int) -> tuple[Counted, Counted]:
        """Return k and v (1, G, P, h) of flat (P, 2 G h)."""
        flat = self.view(self.as_width(flat, self.batch.width), *flat.shape, launches=3, back=4)
        shape = (1, heads, flat.shape[0], flat.shape[1] // (2 * heads))
        k, v = self.parted(flat, (shape, shape))
        return k, v

    def fastfood(
        self, vector: Counted, signs: Counted, order: Counted, gaussian: Counted, scale: Counted,
        size: tuple[int, int],
    ) -> Counted:  # fmt: skip
        """Project a vector randomly to a matrix."""
        del signs, order
        return self.random_projection(vector, gaussian, scale, size)

    def scaled_matrix(self, rows: Counted, matrix: Counted, columns: Counted) -> Counted:
        """Scale the rows and columns of a constant matrix."""
        return self.matrix_scaled(rows, matrix, columns)

    # element by element, and views

    def activation(self, x: Counted, name: str) -> Counted:
        """Apply an activation."""
        if name == "relu":
            return self.saving_output(x)
        if name == "xielu":
            return self.xielu(x)
        return self.pointwise(x, launches=2, back=3) if name == "relu2" else self.pointwise(x)

    def gated(self, gate: Counted, up: Counted, name: str) -> Counted:
        """Combine a gate and what it lets through."""
        del name
        return self.gate(gate, up)

    def add(self, x: Counted, y: Counted) -> Counted:
        """Return ``x + y``, whose gradient is that of both."""
        return self.pointwise(x, y, back=0)

    def subtract(self, x: Counted, y: Counted) -> Counted:
        """Return ``x - y``."""
        if y.needs:
            self.back.count(1, 2 * y.nbytes)
        return self.pointwise(x, y, back=0)

    def scaled(self, x: Counted, factor: float) -> Counted:
        """Return ``factor x``."""
        del factor
        return self.pointwise(x)

    def split(self, x: Counted, widths: Sequence[int]) -> Sequence[Counted]:
        """Return views of parts of the last axis."""
        return self.parted(x, [(*x.shape[:-1], width) for width in widths])

    def split_by_head(self, x: Counted, heads: int, widths: Sequence[int]) -> Sequence[Counted]:
        """Return copies of the parts of each head."""
        by_head = self.view(x, *x.shape)
        views = self.parted(by_head, [(*x.shape[:-1], heads * width) for width in widths])
        return [self.copied(view, view.shape) for view in views]

    def to_heads(self, x: Counted, size: int) -> Counted:
        """Return (B, S, heads, size)."""
        return self.view(x, *x.shape[:-1], x.shape[-1] // size, size)

    def heads_first(self, x: Counted) -> Counted:
        """Return (B, heads, S, h)."""
        rows, positions, heads, size = x.shape
        return self.view(x, rows, heads, positions, size)

    def from_heads(self, x: Counted) -> Counted:
        """Return (B, S, heads * h)."""
        rows, heads, positions, size = x.shape
        return self.view(x, rows, positions, heads * size, launches=2, back=2)

    # several adapters in one batch, which no plan is for

    def rows(self, x: Counted, rows: slice) -> Counted:
        """Return some rows."""
        return self.sliced(x, len(range(*rows.indices(x.shape[0]))), *x.shape[1:])

    def attended_rows(self, attended: Attended[Counted], rows: slice) -> Attended[Counted]:
        """Return the attention of some rows."""
        q, k, v = (self.rows(x, rows) for x in (attended.q, attended.k, attended.v))
        return replace(attended, q=q, k=k, v=v)

    def concatenated(self, parts: Sequence[Counted]) -> Counted:
        """Return the rows of all parts."""
        return self.joined(parts, (sum(part.shape[0] for part in parts), *parts[0].shape[1:]))

    def of_rows(self, rows: slice) -> Any:
        """Return the operations on some rows."""
        raise NotImplementedError

    def unpacked_once(self, role: str) -> CountedOps:
        """Return the same."""
        del role
        return self

    def _looked_up(self, shape: tuple[int, ...]) -> Counted:
        """Return rows of a table in the type of activations."""
        self.ahead.launches += 2
        return self.as_width(self._given(shape, self.batch.stored), self.batch.width)

    def _given(self, shape: tuple[int, ...], width: int) -> Counted:
        """Return something that is read or made without a gradient."""
        out = outside(shape, width)
        self.ahead.count(1, 2 * out.nbytes)
        return out
