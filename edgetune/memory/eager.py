"""The operations of :mod:`edgetune.network.ops` on sizes, as torch pays for them.

B rows, S positions, D hidden size, H heads, G key/value heads, h channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgetune.memory import mixers, mixtures, routing
from edgetune.memory.batch_shape import BatchShape
from edgetune.memory.ledger import Ledger
from edgetune.memory.products import Product, unpack
from edgetune.memory.sized import Gradient, Sized, Strewn, outside
from edgetune.memory.streams import Streaming
from edgetune.memory.tile_attention import SizedTile, attend_in_tile
from edgetune.mixer import Recurrent
from edgetune.network.ops import Attended, Dropout, ExpertUpdates, KeptNorms, Key
from edgetune.shape import Experts, Linear, ModelShape, Rotary
from edgetune.storage import FLOAT32_BYTES

NORM_ROWS = 128
"""Rows of a matrix that are in float32 at a time for their norms."""


class EagerOps(Streaming):
    """One block's operations in one pass: bytes are taken when an operation is called."""

    def __init__(
        self,
        shape: ModelShape,
        rows: BatchShape,
        ledger: Ledger,
        layer: int = 0,
        *,
        quantized: bool,
        tile: SizedTile | None = None,
        to_lender: bool = False,
    ) -> None:
        """Begin a pass, over a ``tile`` of a block; nothing is on the tape if no input wants a
        gradient.

        ``to_lender``: whether keys and values of another block want theirs.
        """
        super().__init__(ledger, rows)
        self.shape = shape
        self.own = shape.blocks[layer]
        self.quantized = quantized
        self.tile = tile
        self.unread: frozenset[str] = frozenset()
        """The projections whose outputs are not made, as nobody reads them."""
        self.multiplied: set[Linear] = set()
        """The frozen projections that were multiplied with; one of an expert stands for all of them."""
        self.to_lender = to_lender
        self.borrowed: tuple[Sized, ...] = ()
        """Keys and values of another block that this one reads."""
        self.lending: tuple[Sized, ...] = ()
        """Those that later blocks read."""

    # what is frozen

    def embedding(self, tokens: Sized, scale: float, table: Sized | None = None) -> Sized:
        """Look embeddings (B, S, D) up."""
        stored = self.batch.stored if table is None else FLOAT32_BYTES
        x = self._made((*tokens.shape, self.shape.hidden_size), stored)
        x = self.as_width(x, self.batch.width)
        return x if scale == 1.0 else self.scaled(x, scale)

    def position_embedding(self) -> Sized:
        """Look embeddings of positions up."""
        shape = (self.batch.batch, self.batch.context, self.shape.hidden_size)
        return self.as_width(self._made(shape, self.batch.stored), self.batch.width)

    def linear(self, role: str, x: Sized, *, bias: bool = True) -> Sized:  # noqa: ARG002
        """Multiply by a frozen matrix."""
        return self.product(x, self._product(role), read=role not in self.unread)

    def lora_linear(
        self, role: str, x: Sized, a: Sized, b: Sized, scale: float, dropout: Dropout | None,
        *, bias: bool = True, fixed: bool = False,
    ) -> Sized:  # fmt: skip
        """Multiply by a frozen matrix and a low-rank update."""
        del scale, bias, fixed  # a constant wants no gradient
        product = self._product(role)
        read = role not in self.unread
        return self.low_rank_product(x, a, b, product, dropout=dropout is not None, read=read)

    def bias(self, role: str, y: Sized) -> Sized:
        """Add a frozen bias."""
        linear = self.own.linear_by_role[role]
        if not linear.bias:
            return y
        bias = self.as_width(outside((linear.outputs,), self.batch.stored), y.width)
        return self.plus_vector(y, bias)

    def norm(
        self, role: str, x: Sized, weight: Sized | None = None, bias: Sized | None = None
    ) -> Sized:
        """Normalise x."""
        shape = self.shape
        ends = {"final": shape.final_norm, "embedding": shape.embedding_norm}
        norm = ends.get(role) or self.own.norm_by_role[role]
        kind = norm.kind or shape.norm
        if norm.plain:
            rms = kind.kind == "rms"
            return self.rms_norm(x, None) if rms else self.layer_norm(x, None, None)
        stored = outside((norm.size,), self.batch.stored)
        gain = self.gain(stored if weight is None else weight, kind)
        if kind.kind == "rms":
            grouped = x.view(*x.shape[:-1], kind.groups, norm.size // kind.groups)
            whole = kind.groups == 1
            return self.rms_norm(x if whole else grouped, gain, whole=whole).view(*x.shape)
        wide = self.as_width(stored if bias is None else bias, FLOAT32_BYTES) if norm.bias else None
        return self.layer_norm(x, gain, wide)

    def row_norms(
        self, key: Key, a: Sized, b: Sized, scale: float, kept: KeptNorms[Sized]
    ) -> Sized:
        """Make the norms of a matrix's rows, which stay for the pass."""
        del scale
        if key not in kept.norms:
            outputs, rank = b.shape
            piece = min(NORM_ROWS, outputs)
            wide = 0 if self.batch.product == FLOAT32_BYTES else piece * a.shape[1]
            numbers = wide + piece * rank + rank**2 + 4 * outputs
            product = self._product(key[1])
            unpack(self.ledger, product, self.batch)
            self.ledger.transient(FLOAT32_BYTES * numbers, product.dense(self.batch))
            kept.norms[key] = outside((outputs,), FLOAT32_BYTES)
        return kept.norms[key]

    # a mixture of experts

    def route(self, x: Sized, rule: Experts) -> tuple[Sized, Sized]:
        """Choose experts."""
        return routing.route(self, x, rule)

    def shared(self, x: Sized, y: Sized) -> Sized:
        """Multiply by a share a token."""
        return mixtures.shared(self, x, y)

    def experts(
        self, x: Sized, weights: Sized, chosen: Sized, rule: Experts, activation: str,
        updates: ExpertUpdates[Sized],
    ) -> Sized:  # fmt: skip
        """Send each token through its experts."""
        del rule, activation
        self.multiplied.update(each for each in self.own.expert_linears if not each.expert)
        return mixtures.experts(
            self, x, weights, chosen, self.own, updates, quantized=self.quantized
        )

    # what tokens are to each other

    def rotate(self, x: Sized, rotary: Rotary) -> Sized:
        """Rotate x (B, heads, S, h)."""
        return self.rotated(x, rotary)

    def with_shared(self, k: Sized, shared: Sized) -> Sized:
        """Put what all heads share behind the channels of each."""
        sizes, wanted = (k.nbytes, shared.nbytes), (k.needs, shared.needs)
        return self.tape.made(
            (*k.shape[:3], k.shape[3] + shared.shape[3]), k.width, (k, shared),
            lambda _: self._each(sizes, wanted), heads_apart=True,
        )  # fmt: skip

    def channels(self, x: Sized, size: int) -> Sized:
        """Put zeros behind channels, or leave the last ones out."""
        if size == x.shape[-1]:
            return x
        before = x.nbytes
        shape = (*x.shape[:-1], size)
        return self.tape.made(shape, x.width, (x,), lambda _: (self.new(before),))

    def keys(self, k: Sized, v: Sized) -> int:
        """Return how many documents the fullest row holds."""
        if self.tile is not None and self.tile.graded:
            self.tile.own = k, v
        return self.batch.documents

    def attend(self, attended: Attended[Sized], before: tuple[Sized, Sized] | None = None) -> Sized:
        """Attend, to keys in front of those of every document too."""
        q, k, v, rule = attended.q, attended.k, attended.v, attended.rule
        if self.tile is not None:
            return attend_in_tile(self, (q, k, v), rule, self.tile, before)
        if before is None:
            return self.attention(q, k, v, rule)
        documents, length = attended.keys, before[0].shape[2]
        nothing = self._made((1, q.shape[1], length, q.shape[3]), q.width)
        q, k, v = (
            self.behind(x, front, documents)
            for x, front in zip((q, k, v), (nothing, *before), strict=True)
        )
        out = self.attention(q, k, v, rule)
        return self.sliced(
            out, attended.q.shape, heads_apart=out.heads_apart, rows_apart=not out.heads_apart
        )

    def sinks(self) -> Sized:
        """Return the scores of sinks."""
        return outside((self.own.heads,), self.batch.stored)

    def lend(self, k: Sized, v: Sized) -> None:
        """Keep k and v as long as the pass."""
        self.lending = (k, v)

    def lent(self, layer: int) -> tuple[Sized, Sized]:
        """Return keys and values that are counted with the block that made them."""
        block, rows = self.shape.blocks[layer], self.batch
        shape = (rows.batch, block.kv_heads, rows.context, block.head_dim)
        k, v = (outside(shape, rows.width, needs=self.to_lender) for _ in range(2))
        self.borrowed = (k, v)
        return k, v

    def per_layer_input(self) -> Sized:
        """Return numbers that live through the whole pass."""
        rows = self.batch
        return outside((rows.batch, rows.context, self.own.per_layer), rows.width)

    def frozen_times(self, x: Sized, role: str) -> Sized:  # noqa: ARG002
        """Multiply by a frozen tensor of the block."""
        return self.scaled(x, 1.0)

    def some_heads(self, attended: Attended[Sized], heads: slice) -> Attended[Sized]:
        """Attend with some heads."""
        count = attended.k.shape[1]
        some = len(range(*heads.indices(count)))
        q, k, v = (
            self.sliced(
                x,
                (x.shape[0], x.shape[1] // count * some, *x.shape[2:]),
                heads_apart=x.heads_apart,
            )
            for x in (attended.q, attended.k, attended.v)
        )
        return replace(attended, q=q, k=k, v=v)

    def in_groups(self, attended: Attended[Sized], size: int, *, late: bool) -> Attended[Sized]:
        """Attend within groups, which takes no more than to all."""
        del size, late
        return attended

    def heads_together(self, parts: Sequence[Sized]) -> Sized:
        """Put heads beside each other."""
        rows, _, *rest = parts[0].shape
        shape = (rows, sum(part.shape[1] for part in parts), *rest)
        return self.joined(parts, shape, heads_apart=True)

    def attend_all(self, q: Sized, k: Sized, v: Sized, scale: float) -> Sized:
        """Attend to keys that all queries see."""
        return self.attention_to_all(q, k, v, scale)

    def cached_rows(self) -> int:
        """Return that there are no caches: this is no generation."""
        return 0

    def cached(self, row: int, attended: Attended[Sized]) -> Attended[Sized]:
        """Return the same: there are no caches."""
        del row
        return attended

    def filled(self, x: Sized, like: Sized) -> Sized:
        """Return x: there are no caches."""
        del like
        return x

    def first_pass(self) -> bool:
        """Return that nothing is cached."""
        return True

    def mix(self, mixer: Recurrent, inputs: Sequence[Sized], trained: Mapping[str, Sized]) -> Sized:
        """Carry a state within documents."""
        stored = self.batch.stored
        frozen = {each.role: outside(each.shape, stored) for each in mixer.tensors}
        own, tile = mixer.own(frozen, trained), self.tile
        if tile is not None and mixer.state:
            go_on = mixers.mixed_in_tile(mixer)
            out, tile.behind = go_on(self, mixer, inputs, own, tile.state, tile.read)
            return out
        return mixers.mixed(mixer)(self, mixer, inputs, own)

    # what is trained

    def low_rank(
        self, x: Sized, a: Sized, b: Sized, scale: float, dropout: Dropout | None
    ) -> Sized:
        """Multiply by a low-rank update alone."""
        if dropout is not None:
            x = self.scaled(self.times_vector(x, self._made(x.shape, 1)), 1.0)
        a, b = self.as_width(a, x.width), self.as_width(b, x.width)
        return self.scaled(self.matmul(self.matmul(x, a, a.shape[0]), b, b.shape[0]), scale)

    def trained_linear(self, x: Sized, weight: Sized) -> Sized:
        """Multiply by a trained matrix."""
        return self.trained_product(x, weight)

    def add_bias(self, y: Sized, bias: Sized) -> Sized:
        """Add a trained bias."""
        narrow = 0 if y.width == FLOAT32_BYTES else bias.numbers * y.width
        self.ledger.transient(narrow, y.nbytes)
        return self.plus_vector(y, bias)

    def times(self, x: Sized, vector: Sized) -> Sized:
        """Multiply by a trained vector."""
        return self.times_vector(x, self.as_width(vector, x.width))

    def times_ratio(self, x: Sized, above: Sized, below: Sized) -> Sized:
        """Multiply by the ratio of two vectors."""
        ratio = self.pointwise(above)
        del below
        return self.times_vector(x, self.as_width(ratio, x.width))

    def times_heads(self, x: Sized, vector: Sized) -> Sized:
        """Multiply each head by its number."""
        return self.times_vector(x, self.as_width(vector, x.width))

    def replaced(self, x: Sized, prompt: Sized) -> Sized:
        """Put a trained prompt at the first positions."""
        rows = self.spread(self.as_width(prompt, x.width), x.shape)
        return self.plus(x, rows)

    def cast(self, trained: Sized) -> Sized:
        """Return a trained tensor in the type of activations."""
        return self.as_width(trained, self.batch.width)

    # small tensors, in float32

    def float32_linear(self, x: Sized, weight: Sized, bias: Sized) -> Sized:
        """Multiply trained tensors."""
        return self.plus_vector(self.matmul(x, weight, weight.shape[0]), bias)

    def tanh(self, x: Sized) -> Sized:
        """Return tanh of x."""
        return self.pointwise(x, saves_output=True)

    def some_rows(self, trained: Sized, rows: slice) -> Sized:
        """Return a view, whose gradient is added to a part of the tensor's."""
        count = len(range(*rows.indices(trained.shape[0])))
        return trained.view(count, *trained.shape[1:])

    def some_columns(self, trained: Sized, columns: slice) -> Sized:
        """Return a view, whose gradient gets the size of the tensor."""
        return self.sliced(
            trained, (trained.shape[0], len(range(*columns.indices(trained.shape[1]))))
        )

    def keys_values(self, flat: Sized, heads: int) -> tuple[Sized, Sized]:
        """Return k and v (1, G, P, h) of flat (P, 2 G h)."""
        flat = self.as_width(flat, self.batch.width)
        shape = (1, heads, flat.shape[0], flat.shape[1] // (2 * heads))
        k, v = self.parted(flat, (shape, shape))
        return k, v

    def fastfood(
        self, vector: Sized, signs: Sized, order: Sized, gaussian: Sized, scale: Sized,
        size: tuple[int, int],
    ) -> Sized:  # fmt: skip
        """Project a vector randomly to a matrix."""
        del signs, order
        return self.random_projection(vector, gaussian, scale, size)

    def scaled_matrix(self, rows: Sized, matrix: Sized, columns: Sized) -> Sized:
        """Scale the rows and columns of a constant matrix."""
        return self.matrix_scaled(rows, matrix, columns)

    # element by element, and views

    def activation(self, x: Sized, name: str) -> Sized:
        """Apply an activation."""
        if name == "xielu":
            return self.xielu(x)
        return self.pointwise(x, saves_output=name == "relu")

    def gated(self, gate: Sized, up: Sized, name: str) -> Sized:
        """Combine a gate and what it lets through."""
        return self.gate(gate, up, name)

    def add(self, x: Sized, y: Sized) -> Sized:
        """Return ``x + y``."""
        return self.plus(x, y)

    def subtract(self, x: Sized, y: Sized) -> Sized:
        """Return ``x - y``."""
        return self.minus(x, y)

    def split(self, x: Sized, widths: Sequence[int]) -> Sequence[Sized]:
        """Return views of parts of the last axis."""
        return self.parted(x, [(*x.shape[:-1], width) for width in widths])

    def split_by_head(self, x: Sized, heads: int, widths: Sequence[int]) -> Sequence[Sized]:
        """Return copies of the parts of each head."""
        views = self.parted(x, [(*x.shape[:-1], heads * width) for width in widths])
        return [self.copied(view) for view in views]

    def to_heads(self, x: Sized, size: int) -> Sized:
        """Return (B, S, heads, size)."""
        shape, nbytes = (*x.shape[:-1], x.shape[-1] // size, size), x.nbytes
        if not x.needs:
            return x.view(*shape)
        out = x.part(shape)

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            grad = grads[0]
            return (
                self.new(nbytes) if isinstance(grad, Strewn) and grad.first == "heads" else grad,
            )

        self.tape.record((x,), (out,), (), back)
        return out

    def heads_first(self, x: Sized) -> Sized:
        """Return (B, heads, S, h)."""
        rows, positions, heads, size = x.shape
        return x.view(rows, heads, positions, size)

    def from_heads(self, x: Sized) -> Sized:
        """Return (B, S, heads * h)."""
        rows, heads, positions, size = x.shape
        flat = x.view(rows, positions, heads * size)
        return self.copied(flat) if x.heads_apart else flat

    # several adapters in one batch

    def rows(self, x: Sized, rows: slice) -> Sized:
        """Return some rows."""
        return self.sliced(x, (len(range(*rows.indices(x.shape[0]))), *x.shape[1:]))

    def attended_rows(self, attended: Attended[Sized], rows: slice) -> Attended[Sized]:
        """Return the attention of some rows."""
        q, k, v = (self.rows(x, rows) for x in (attended.q, attended.k, attended.v))
        return replace(attended, q=q, k=k, v=v)

    def concatenated(self, parts: Sequence[Sized]) -> Sized:
        """Return the rows of all parts."""
        count = sum(part.shape[0] for part in parts)
        return self.joined(parts, (count, *parts[0].shape[1:]))

    def of_rows(self, rows: slice) -> Any:
        """Return the operations on some rows."""
        raise NotImplementedError

    def unpacked_once(self, role: str) -> EagerOps:
        """Return the same."""
        del role
        return self

    def _made(self, shape: tuple[int, ...], width: int) -> Sized:
        return self.tape.made(shape, width, (), _nothing)

    def _product(self, role: str) -> Product:
        linear = self.own.linear_by_role[role]
        self.multiplied.add(linear)
        return Product(inputs=linear.inputs, outputs=linear.outputs, quantized=self.quantized)


def _nothing(_: list[Gradient]) -> Sequence[Gradient]:
    return ()
