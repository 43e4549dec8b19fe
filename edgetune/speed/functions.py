"""What the torch engine's own functions take: norms, rotations, gates, products with matrices.

T tokens, K inputs, N outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from edgetune import pieces
from edgetune.shape import Linear, NormKind, Rotary
from edgetune.speed.counted import Counted, Counting
from edgetune.speed.tally import PIECE, Tally
from edgetune.storage import FLOAT32_BYTES

SPAN = 512
"""Rows that are widened at a time where products are wider than activations."""

DRAWN = 256
"""Positions of a row whose dropout is drawn at a time."""

STAGE = 6
"""Operations of a stage of a Hadamard transform."""

NORM_ROWS = 128
"""Rows of a matrix whose norms are computed at a time."""


class Functions(Counting):
    """Norms, rotations, gates and products with frozen and with trained matrices."""

    # norms

    def rms_norm(self, x: Counted, gain: Counted | None) -> Counted:
        """Return x normalised over its last axis; the way back normalises it again."""
        inputs, narrow, wide = self._inputs(x, gain), self.batch.narrow, FLOAT32_BYTES * x.numbers
        plain, copy = gain is None, x.nbytes + wide
        out, times = self.made(x.shape, x.width, inputs), self._pieces(x.shape)
        ahead = (7 - plain + narrow, 2), (7 - 2 * plain) * wide + (1 + narrow) * copy
        back = (12 + 2 * narrow, 3), 18 * wide + (1 + 2 * narrow) * copy
        self.done(out, inputs, _issued(*ahead, times), _issued(*back, times))
        if gain is not None and gain.needs:
            self.back.count(1 + 3 * times, 4 * wide)
        return out

    def layer_norm(self, x: Counted, gain: Counted | None, bias: Counted | None) -> Counted:
        """Return x normalised over its last axis by one operation in float32."""
        inputs, narrow, wide = (
            self._inputs(x, gain, bias),
            self.batch.narrow,
            FLOAT32_BYTES * x.numbers,
        )
        copies = narrow * (x.nbytes + wide)
        out = self.made(x.shape, x.width, inputs)
        one = 1 + 2 * narrow
        return self.done(out, inputs, (one, 2 * wide + 2 * copies), (one, 4 * wide + 2 * copies))

    def xielu(self, x: Counted) -> Counted:
        """Return xIELU of x, both ways in float32 over some rows at a time."""
        narrow, wide = self.batch.narrow, FLOAT32_BYTES * x.numbers
        pieces, copies = ceil(x.numbers / x.shape[-1] / PIECE), narrow * (x.nbytes + wide)
        out = self.made(x.shape, x.width, (x,))
        ahead = 12 + pieces * (10 + narrow), 20 * wide + copies
        back = 3 + pieces * (11 + narrow), 20 * wide + copies
        return self.done(out, (x,), ahead, back)

    def streamed(self, x: Counted, inputs: Sequence[Counted], *, ahead: int, back: int) -> Counted:
        """Return what is made of x in float32, some tokens at a time: launches of each of these."""
        pieces, wide = self.pieces(x), FLOAT32_BYTES * x.numbers
        out = self.made(x.shape, x.width, inputs)
        moved = 5 * wide + sum(each.nbytes for each in inputs)
        return self.done(out, inputs, (pieces * ahead, moved), (pieces * back, 2 * moved))

    def pieces(self, x: Counted) -> int:
        """Return how often some tokens of x (..., F) are computed at a time."""
        return ceil(x.numbers / x.shape[-1] / PIECE)

    def gain(self, weight: Counted, kind: NormKind) -> Counted:
        """Return a norm's weight as it multiplies, in float32."""
        wide = self.as_width(weight, FLOAT32_BYTES)
        if kind.offset:
            self.ahead.launches += 1
        return wide

    # what tokens are to each other

    def rotated(self, x: Counted, rotary: Rotary) -> Counted:
        """Return x (B, heads, S, h) rotated by position; the tables are there."""
        whole = rotary.dimensions == x.shape[-1]
        part = x.nbytes * rotary.dimensions // x.shape[-1]
        out = self.made(x.shape, x.width, (x,))
        if whole and not rotary.interleaved and self.batch.in_pieces:
            rows, heads, positions, channels = x.shape
            times = self._pieces((rows, positions, heads * channels))
            ahead, back = _issued((6, 5), 10 * part, times), _issued((6, 5), 7 * part, times)
            return self.done(out, (x,), ahead, back)
        ahead = (8, 11 * part) if whole else (9, 11 * part + 2 * x.nbytes)
        back = (7, 11 * part) if whole else (13, 11 * part + 9 * x.nbytes)
        self.ahead.launches += 2 * rotary.interleaved
        self.back.launches += 2 * rotary.interleaved * x.needs
        return self.done(out, (x,), ahead, back)

    # element by element

    def gate(self, gate: Counted, up: Counted) -> Counted:
        """Return ``activation(gate) * up``; the activation is made again on the way back."""
        out, times = self.made(up.shape, up.width, (gate, up)), self._pieces(up.shape)
        ahead, back = _issued((2, 3), 5 * up.nbytes, times), _issued((4, 5), 11 * up.nbytes, times)
        return self.done(out, (gate, up), ahead, back)

    def _pieces(self, shape: tuple[int, ...]) -> int:
        """Return in how many pieces an array is computed."""
        return pieces.count(shape) if self.batch.in_pieces else 1

    # products with frozen matrices

    def product(self, x: Counted, linear: Linear, *, bias: bool) -> Counted:
        """Return a product with a frozen matrix."""
        out = self.made((*x.shape[:-1], linear.outputs), x.width, (x,))
        self.frozen(self.ahead, linear, x.numbers // linear.inputs, bias=bias)
        if x.needs:
            self.frozen(self.back, linear, x.numbers // linear.inputs, launches=6)
        return out

    def frozen(
        self, tally: Tally, linear: Linear, rows: int, *, launches: int = 7, bias: bool = False
    ) -> None:
        """Count a product of so many rows with a matrix, one way or the other."""
        own = Tally(launches=launches + bias + linear.transposed)
        own.products = 2 * rows * linear.inputs * linear.outputs
        self.unpacked(own, linear)
        self._widened(own, rows, linear.inputs + linear.outputs)
        tally.add(own)
        if tally is self.ahead and linear.role in self.unread:
            self.left_out.add(own)

    def unpacked(self, tally: Tally, linear: Linear, times: float = 1.0) -> None:
        """Count that a matrix becomes numbers."""
        tally.matrices += times
        tally.pieces += times * ceil(linear.outputs / PIECE)
        tally.weights += times * linear.inputs * linear.outputs

    def _widened(self, tally: Tally, rows: int, columns: int) -> None:
        """Count what it takes that rows are widened, and rounded when they are multiplied."""
        if self.batch.product != self.batch.width:
            moved = rows * columns * (self.batch.product + self.batch.width)
            tally.count(7 * ceil(rows / SPAN), moved)

    def low_rank_product(
        self, x: Counted, a: Counted, b: Counted, linear: Linear, *, bias: bool, dropout: bool
    ) -> Counted:
        """Return a product with a frozen matrix and a low-rank update, added to each other."""
        rows, rank = x.numbers // linear.inputs, a.shape[0]
        both = linear.inputs + linear.outputs
        casts = 2 * self._cast()
        out = self.made((*x.shape[:-1], linear.outputs), x.width, (x, a, b))
        update = 2 * rows * rank * both
        self.frozen(self.ahead, linear, rows, bias=bias)
        self.ahead.products += update
        self.ahead.count(7 + casts, casts * 3 * rank * both)
        if dropout:
            self.drawn(self.ahead, x, times=2)
        if not out.needs:
            return out
        if x.needs:
            self.frozen(self.back, linear, rows, launches=5)
        share = (2 * linear.outputs + linear.inputs * (x.needs + a.needs)) / both
        self.back.products += update * share
        moved = 6 * b.nbytes + 4 * a.nbytes * a.needs + casts * 3 * rank * both
        self.back.count(10 + casts + 6 * a.needs, moved)
        if dropout:
            self.drawn(self.back, x, times=4)
        return out

    def _cast(self) -> int:
        return int(self.batch.product != FLOAT32_BYTES)

    def drawn(self, tally: Tally, x: Counted, times: int) -> None:
        """Count a mask of x (B, S, K) and the passes over x that it takes."""
        rows, positions = x.shape[0], x.shape[1]
        pieces = rows * (ceil(positions / DRAWN))
        tally.count(2 + times + 4 * pieces, 4 * x.numbers + 2 * times * x.nbytes)

    def row_norms_of(self, linear: Linear, rank: int) -> None:
        """Count the norms of a matrix's rows with its update, once for each state of that.

        ``|W|^2`` of the frozen rows is there.
        """
        state, size = self.state, linear.inputs * linear.outputs
        narrow = self._cast()
        self.unpacked(state, linear)
        state.wide += 2 * rank * (size + rank * (linear.inputs + linear.outputs))
        spans = ceil(linear.outputs / NORM_ROWS)
        moved = narrow * (self.batch.product + 2 * FLOAT32_BYTES) * size  # widened, read once more
        state.count(10 + (11 + narrow) * spans, moved)

    # products with trained ones

    def trained_product(self, x: Counted, weight: Counted) -> Counted:
        """Return a product with a trained matrix (N, K), of which no copy is kept."""
        flops, cast = 2 * x.numbers * weight.shape[0], int(x.width != weight.width)
        copy = cast * weight.numbers * (x.width + weight.width)
        out = self.made((*x.shape[:-1], weight.shape[0]), x.width, (x, weight))
        self.ahead.products += flops
        self.ahead.count(4 + cast, copy)
        if weight.needs:
            self.back.products += flops
            self.back.count(4 + cast, copy)
        if x.needs:
            self.back.products += flops
            self.back.count(2 + cast, copy)
        return out

    def matrix_scaled(self, rows: Counted, matrix: Counted, columns: Counted) -> Counted:
        """Return a constant matrix (N, R) scaled by trained vectors."""
        out = self.made(matrix.shape, FLOAT32_BYTES, (rows, columns))
        self.ahead.count(3, 5 * matrix.nbytes)
        if out.needs:
            self.back.count(5, 5 * matrix.nbytes)
        return out

    def random_projection(
        self, vector: Counted, gaussian: Counted, scale: Counted, size: tuple[int, int]
    ) -> Counted:
        """Return a Fastfood projection (N, K): Hadamard transforms, stage by stage."""
        stages, small = vector.numbers.bit_length() - 1, vector.nbytes
        out = self.made(size, FLOAT32_BYTES, (vector, scale))
        whole = (4 * stages + 6) * gaussian.nbytes
        self.ahead.count(9 + 2 * STAGE * stages, whole + 4 * stages * small)
        if out.needs:
            self.back.count(18 + 3 * STAGE * stages, whole + 8 * stages * small)
        return out

    def _inputs(self, *values: Counted | None) -> tuple[Counted, ...]:
        return tuple(each for each in values if each is not None)


def _issued(each: tuple[float, int], moved: float, times: int) -> tuple[float, float]:
    """Return operations and bytes of what is computed in so many pieces, and is put together.

    ``each`` are those of a piece, and the views that it takes.
    """
    own, views = each
    return 1 + times * (own + views), moved
