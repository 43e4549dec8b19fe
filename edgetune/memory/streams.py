"""Bytes of several streams (AltUp), and of a sparse gate, as the torch engine computes them.

B rows, S positions, N streams of D numbers; some tokens at a time are widened.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgetune.altup import AltUp
from edgetune.memory.attended import Attending
from edgetune.memory.batch_shape import PIECE
from edgetune.memory.sized import Gradient, Sized, outside
from edgetune.shape import BlockShape
from edgetune.storage import FLOAT32_BYTES


class Streaming(Attending):
    """Operations that save what came in, and compute in float32 some tokens at a time."""

    own: BlockShape

    def parted_streams(self, x: Sized, rule: AltUp) -> Sized:
        """Begin the streams, outside of blocks."""
        return outside((*x.shape[:-1], rule.count * x.shape[-1]), x.width)

    def joined_streams(self, x: Sized, rule: AltUp) -> Sized:
        """Average the streams, outside of blocks (:mod:`edgetune.memory.joined`)."""
        return outside((*x.shape[:-1], x.shape[-1] // rule.count), x.width)

    def predicted(self, x: Sized, routed: Sized) -> Sized:
        """Mix the streams."""
        one, narrow, rule = self._piece(routed), x.width != FLOAT32_BYTES, self._altup
        beside = (1 + narrow) * rule.count * one + self._shares(routed, rule)
        sizes, wanted = (x.nbytes, routed.nbytes), (x.needs, routed.needs)

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            found = [self.new(size) for size in sizes]
            self.ledger.transient(beside)
            return [each if want else None for each, want in zip(found, wanted, strict=True)]

        out = self.tape.made(x.shape, x.width, (x, routed), back, saved=(x, routed))
        self.ledger.transient(beside)
        return out

    def corrected(self, x: Sized, made: Sized, routed: Sized) -> Sized:
        """Move the streams."""
        one, narrow, rule = self._piece(routed), x.width != FLOAT32_BYTES, self._altup
        small = self._shares(routed, rule)
        ahead = (1 + (1 + narrow) * rule.count) * one + small
        returning = (rule.count + (4 if narrow else 2)) * one + small
        inputs = (x, made, routed)
        sizes, wanted = [each.nbytes for each in inputs], [each.needs for each in inputs]

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            found = [self.new(size) for size in sizes]
            self.ledger.transient(returning)
            return [each if want else None for each, want in zip(found, wanted, strict=True)]

        out = self.tape.made(x.shape, x.width, inputs, back, saved=inputs)
        self.ledger.transient(ahead)
        return out

    def added_behind(self, x: Sized, y: Sized) -> Sized:
        """Add to all streams but the first."""
        size = y.nbytes
        return self.tape.made(x.shape, x.width, (x, y), lambda grads: (grads[0], self.new(size)))

    def above(self, x: Sized, deviations: float) -> Sized:  # noqa: ARG002
        """Let through what is far above the mean."""
        size, one, narrow = x.nbytes, self._piece(x), x.width != FLOAT32_BYTES

        def back(_: list[Gradient]) -> Sequence[Gradient]:
            grad = self.new(size)
            self.ledger.transient((3 + narrow) * one)
            return (grad,)

        out = self.tape.made(x.shape, x.width, (x,), back, saved=(x,))
        self.ledger.transient((1 + narrow) * one)
        return out

    @property
    def _altup(self) -> AltUp:
        assert self.own.altup is not None
        return self.own.altup

    def _piece(self, x: Sized) -> int:
        """Return the bytes of some tokens of x (B, S, F) in float32."""
        columns = x.shape[-1]
        return FLOAT32_BYTES * min(PIECE, x.numbers // columns) * columns

    def _shares(self, routed: Sized, rule: AltUp) -> int:
        """Return the bytes of what a router says of some tokens, and of what is made of it."""
        tokens = min(PIECE, routed.numbers // routed.shape[-1])
        return FLOAT32_BYTES * tokens * (2 * rule.count**2 + 4 * rule.count)
