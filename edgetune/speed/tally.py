"""What operations take, counted by the kinds of work whose rates are known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Tally:
    """How much there is of each kind of work.

    A number may be a mean, as where a router spreads tokens over experts.

    >>> tally = Tally()
    >>> tally.count(2, moved=8)
    >>> tally.add(Tally(launches=1), 3)
    >>> tally.launches, tally.moved
    (5.0, 8.0)
    """

    launches: float = 0.0
    """Operations that are issued, views included; those that unpack matrices are counted apart."""
    products: float = 0.0
    """FLOP of matrix products in the number format of activations."""
    wide: float = 0.0
    """FLOP of matrix products in float32, whatever that is."""
    attention: float = 0.0
    """FLOP of attention by a kernel, where what is masked is not computed."""
    moved: float = 0.0
    """Bytes that element-by-element work reads and writes."""
    matrices: float = 0.0
    """Stored matrices that become numbers to multiply with, each as often as it does."""
    pieces: float = 0.0
    """Pieces of :data:`PIECE` rows of these."""
    weights: float = 0.0
    """Their numbers."""

    def count(self, launches: float, moved: float = 0.0) -> None:
        """Count operations that move bytes alone."""
        self.launches += launches
        self.moved += moved

    def add(self, other: Tally, times: float = 1.0) -> None:
        """Add another one, several times."""
        self.launches += times * other.launches
        self.products += times * other.products
        self.wide += times * other.wide
        self.attention += times * other.attention
        self.moved += times * other.moved
        self.matrices += times * other.matrices
        self.pieces += times * other.pieces
        self.weights += times * other.weights


PIECE = 256
"""Rows of a matrix in eight bits that are unpacked at a time."""
