"""The torch engine's own functions, which keep their inputs and compute the rest again.

Each is followed line by line: what its lines hold for a moment, what it saves for its way back,
and what it holds there. T tokens, K inputs, N outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

from edgetune.memory.batch_shape import PIECE
from edgetune.memory.elementary import Elementary
from edgetune.memory.products import Product, unpack
from edgetune.memory.sized import Gradient, Sized, Strewn, like
from edgetune.pieces import largest
from edgetune.shape import NormKind, Rotary
from edgetune.storage import FLOAT32_BYTES

BOOL_BYTES = 1

NORM_PARTS = 256
"""Sums of rows that a card's kernel makes of the gradient of a norm's weight, at most."""

KERNELS = frozenset({"silu", "gelu", "gelu_tanh", "sigmoid"})
"""Gated activations that a card has a kernel for."""


class Fused(Elementary):
    """Norms, rotations, gates and products with frozen matrices."""

    # norms

    def rms_norm(self, x: Sized, gain: Sized | None, *, whole: bool = True) -> Sized:
        """Return x normalised over its last axis, for a gain in float32, or none."""
        if self.batch.kernels and whole:
            return self._normed_by_kernel(x, gain)
        ledger, inputs = self.ledger, (x,) if gain is None else (x, gain)
        size, own = x.nbytes, gain.nbytes if gain is not None and gain.needs else 0
        wide, narrow = FLOAT32_BYTES * self._at_once(x.shape), x.width != FLOAT32_BYTES
        storage, statistic = self.new(size), wide // x.shape[-1]
        ledger.transient((1 + narrow) * wide, statistic)

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            trained = self.new(own) if own else None
            made = like(grads[0], self.new(size))
            ledger.transient(3 * wide, statistic, max(statistic, own))
            return (made, trained)[: len(inputs)]

        return self.tape.made(x.shape, x.width, inputs, back, storage=storage, saved=inputs)

    def _at_once(self, shape: Sequence[int]) -> int:
        """Return how many numbers are computed at once: a processor goes on by pieces."""
        return largest(shape) if self.batch.keeps_scratch else prod(shape)

    def _normed_by_kernel(self, x: Sized, gain: Sized | None) -> Sized:
        """Return the same of a kernel: the gain of any type, sums of rows for that of a trained one."""
        inputs = (x,) if gain is None else (x, gain)
        size, own = x.nbytes, gain.nbytes if gain is not None and gain.needs else 0
        parts = min(NORM_PARTS, x.numbers // x.shape[-1]) * own

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            made = like(grads[0], self.new(size))
            if not own:
                return (made, None)[: len(inputs)]
            self.ledger.transient(parts, own)
            return made, self.new(own)

        return self.tape.made(x.shape, x.width, inputs, back, saved=inputs)

    def layer_norm(self, x: Sized, gain: Sized | None, bias: Sized | None) -> Sized:
        """Return x normalised over its last axis, in float32 and cast back; gain and bias if any."""
        wide = self.as_width(x, FLOAT32_BYTES)
        size, statistic = wide.nbytes, wide.nbytes // x.shape[-1]
        storage = self.new(size)
        statistics = self.new(2 * statistic)
        others = tuple(each for each in (gain, bias) if each is not None)
        trained = tuple(each.needs for each in others)
        small, inputs = FLOAT32_BYTES * x.shape[-1], (wide, *others)
        wanted = wide.needs

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            own = [self.new(small) if each else None for each in trained]
            return [self.new(size) if wanted else None, *own]

        out = self.tape.made(
            wide.shape, FLOAT32_BYTES, inputs, back,
            storage=storage, saved=(*inputs, statistics),
        )  # fmt: skip
        del wide, others, inputs, storage, statistics
        return self.as_width(out, x.width)

    def gain(self, weight: Sized, kind: NormKind) -> Sized:
        """Return a norm's weight as it multiplies, in float32."""
        if self.batch.kernels and kind.kind == "rms" and kind.groups == 1:
            return weight
        wide = self.as_width(weight, FLOAT32_BYTES)
        if not kind.offset:
            return wide
        return self.tape.made(wide.shape, FLOAT32_BYTES, (wide,), lambda grads: (grads[0],))

    # what tokens are to each other

    def rotated(self, x: Sized, rotary: Rotary) -> Sized:
        """Return x (B, heads, S, h) rotated by position; the tables are counted elsewhere."""
        ledger, size = self.ledger, x.nbytes
        part = size // x.shape[-1] * rotary.dimensions
        whole = rotary.dimensions == x.shape[-1]
        if self.batch.kernels:
            return self.tape.made(
                x.shape, x.width, (x,), lambda grads: (like(grads[0], self.new(size)),),
                heads_apart=x.heads_apart,
            )  # fmt: skip
        if self.batch.keeps_scratch and whole and not rotary.interleaved:
            return self._rotated_in_pieces(x)
        ledger.transient(3 * part)
        if not whole:
            ledger.transient(part, size)

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            ledger.transient(2 * part + part // 2)
            if whole:
                first = grads[0].first if isinstance(grads[0], Strewn) else "rows"
                grads.clear()
                ledger.transient(3 * part + part // 2)
                return (like(Strewn(None, first), self.new(size)),)
            ledger.transient(3 * part + part // 2)
            added = ledger.alloc(part)
            ledger.transient(size)
            grads.clear()
            ledger.transient(size, size)
            ledger.free(added)
            ledger.transient(3 * size)
            return (self.new(size),)

        return self.tape.made(x.shape, x.width, (x,), back, heads_apart=not whole)

    def _rotated_in_pieces(self, x: Sized) -> Sized:
        """Return x (B, heads, S, h) rotated by a processor."""
        ledger, size, (rows, heads, positions, channels) = self.ledger, x.nbytes, x.shape
        piece = largest((rows, positions, heads * channels)) * x.width
        storage = self.new(size)
        ledger.transient(piece + piece // 2)

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            made = like(grads[0], self.new(size))
            ledger.transient(piece)
            return (made,)

        return self.tape.made(x.shape, x.width, (x,), back, storage=storage)

    # element by element

    def gate(self, gate: Sized, up: Sized, name: str) -> Sized:
        """Return ``activation(gate) * up``; the activation is made again on the way back."""
        one, ledger = up.nbytes, self.ledger
        fused = self.batch.kernels and name in KERNELS
        piece = 0 if fused else self._at_once(up.shape) * up.width

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            made = self.new(one), self.new(one)
            ledger.transient(2 * piece if name in {"sigmoid", "relu2"} else piece)
            return made

        storage = self.new(one)
        ledger.transient(piece)
        return self.tape.made(
            up.shape, up.width, (gate, up), back, storage=storage, saved=(gate, up)
        )

    def xielu(self, x: Sized) -> Sized:
        """Return xIELU of x, both ways in float32 over some rows at a time."""
        ledger, size = self.ledger, x.nbytes
        numbers = min(PIECE, x.numbers // x.shape[-1]) * x.shape[-1]
        copies = 2 if x.width == FLOAT32_BYTES else 3
        beside = numbers * (copies * FLOAT32_BYTES + BOOL_BYTES)

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            grad = self.new(size)
            ledger.transient(beside)
            return (grad,)

        out = self.tape.made(x.shape, x.width, (x,), back, saved=(x,))
        ledger.transient(beside)
        return out

    # products

    def product(self, x: Sized, product: Product, *, read: bool = True) -> Sized:
        """Return a product with a frozen matrix, which saves nothing; not multiplied if not ``read``."""
        ledger, rows = self.ledger, self.batch
        size = x.nbytes
        outputs = size // product.inputs * product.outputs

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            unpack(ledger, product, rows)
            held = ledger.alloc(product.dense(rows) + (outputs if _strewn(grads) else 0))
            grad = self.new(size)
            ledger.free(held)
            return (grad,)

        shape, flat, held = (*x.shape[:-1], product.outputs), self._flat(x) if read else 0, 0
        if read:
            unpack(ledger, product, rows)
            held = ledger.alloc(product.dense(rows))
        out = self.tape.made(shape, x.width, (x,), back)
        ledger.free(held + flat)
        return out

    def low_rank_product(
        self, x: Sized, a: Sized, b: Sized, product: Product, *, dropout: bool, read: bool = True
    ) -> Sized:
        """Return a product with a frozen matrix and a low-rank update."""
        ledger, rows = self.ledger, self.batch
        tokens, rank = x.numbers // product.inputs, a.shape[0]
        copies = rank * (product.inputs + product.outputs) * rows.product
        copies = 0 if rows.product == FLOAT32_BYTES else copies
        flat = self._flat(x)
        if read:
            unpack(ledger, product, rows)
        held = ledger.alloc((product.dense(rows) if read else 0) + copies)
        storage = self.new(tokens * product.outputs * x.width)
        low = self.new(tokens * rank * rows.product)
        if dropout:
            piece = _piece(rows.upcast, tokens) * product.inputs * rows.product
            ledger.transient(tokens * product.inputs, piece)
        ledger.free(held + flat)
        shape = (*x.shape[:-1], product.outputs)
        back = _LowRankBack(self, product, x, a, b, copies, dropout=dropout)
        return self.tape.made(
            shape, x.width, (x, a, b), back,
            storage=storage, saved=(x if a.needs else None, b, low),
        )  # fmt: skip

    def trained_product(self, x: Sized, weight: Sized) -> Sized:
        """Return a product with a trained matrix (N, K), which saves no copy of it."""
        ledger, size, wide, needed = self.ledger, x.nbytes, weight.nbytes, x.needs
        outputs, inputs = weight.shape
        copy = 0 if x.width == FLOAT32_BYTES else weight.numbers * x.width
        flat = self._flat(x)

        def back(grads: list[Gradient]) -> Sequence[Gradient]:
            flat_grad = size // inputs * outputs if _strewn(grads) else 0
            ledger.alloc(flat + flat_grad)
            ledger.transient(copy, wide)
            own = self.new(wide)
            ledger.free(flat)
            held = ledger.alloc(copy if needed else 0)
            grad = self.new(size) if needed else None
            ledger.free(held + flat_grad)
            return grad, own

        held = ledger.alloc(copy)
        shape = (*x.shape[:-1], outputs)
        out = self.tape.made(shape, x.width, (x, weight), back, saved=(x, weight))
        ledger.free(held + flat)
        return out

    def matrix_scaled(self, rows: Sized, matrix: Sized, columns: Sized) -> Sized:
        """Return a constant matrix (N, R) scaled by trained vectors, which saves no copy of it."""
        ledger, sizes = self.ledger, (rows.nbytes, columns.nbytes)
        both = matrix.nbytes

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            held = ledger.alloc(both)
            made = [self.new(size) for size in sizes]
            ledger.free(held)
            return made

        return self.tape.made(matrix.shape, FLOAT32_BYTES, (rows, columns), back)

    def random_projection(
        self, vector: Sized, gaussian: Sized, scale: Sized, size: tuple[int, int]
    ) -> Sized:
        """Return a Fastfood projection (N, K) of a vector, which saves its inputs alone.

        A Hadamard transform holds half of what it transforms once more.
        """
        ledger, whole, sizes = self.ledger, gaussian.nbytes, (vector.nbytes, scale.nbytes)

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            held = ledger.alloc(whole)
            ledger.transient(max(whole // 2, 4 * sizes[0]))
            made = [self.new(one) for one in sizes]
            ledger.free(held)
            return made

        ledger.transient(whole + whole // 2 + sizes[0])
        return self.tape.made(gaussian.shape, FLOAT32_BYTES, (vector, scale), back).view(*size)

    def _flat(self, x: Sized) -> int:
        """Return the bytes, which are counted, of x as one matrix, where that is a copy."""
        return self.ledger.alloc(x.nbytes) if x.rows_apart and x.shape[0] > 1 else 0


class _LowRankBack:
    """The way back through :meth:`Fused.low_rank_product`."""

    def __init__(
        self, fused: Fused, product: Product, x: Sized, a: Sized, b: Sized, copies: int,
        *, dropout: bool,
    ) -> None:  # fmt: skip
        self.fused, self.product, self.dropout = fused, product, dropout
        self.copies, self.size, self.needed = copies, x.nbytes, x.needs
        self.tokens, self.rank = x.numbers // product.inputs, a.shape[0]
        self.fixed = not a.needs  # whose way back does not read x
        self.flat = x.nbytes if x.rows_apart and x.shape[0] > 1 and a.needs else 0
        self.own = (a.nbytes if a.needs else 0, b.nbytes)
        self.outputs = x.nbytes // product.inputs * product.outputs

    def __call__(self, grads: list[Gradient]) -> Sequence[Gradient]:
        ledger, rows, product = self.fused.ledger, self.fused.batch, self.product
        strewn = self.outputs if _strewn(grads) else 0
        copies = ledger.alloc(self.copies + self.flat + strewn)
        own = [self.fused.new(size) for size in self.own]
        dense = 0
        if self.needed:
            unpack(ledger, product, rows)
            dense = ledger.alloc(product.dense(rows))
        grad = self.fused.new(self.size) if self.needed else None
        self._pieces(_piece(rows.upcast, self.tokens))
        ledger.free(copies + dense)
        return grad, *own

    def _pieces(self, piece: int) -> None:
        ledger, width, product = self.fused.ledger, self.fused.batch.product, self.product
        again = ceil(self.tokens / piece) > 1  # the piece before is there until the next one is
        low = ledger.alloc(piece * self.rank * width)
        inputs = piece * product.inputs * width
        mask = ledger.alloc(self.tokens * product.inputs) if self.dropout else 0
        before = inputs if mask and again and not self.fixed else 0
        ledger.transient(max(self.rank * product.outputs * width, low if again else 0), before)
        if not self.fixed:
            if mask:
                ledger.transient(inputs, inputs if again else 0)
            ledger.transient(self.rank * product.inputs * width, inputs if mask else 0)
        if mask and self.needed:
            ledger.transient((2 if self.fixed else 3) * inputs)
        ledger.free(low + mask)


def _strewn(grads: list[Gradient]) -> bool:
    return isinstance(grads[0], Strewn)


def _piece(upcast: bool, tokens: int) -> int:
    return min(PIECE, tokens) if upcast else tokens
