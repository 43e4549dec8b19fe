"""Counting live bytes through a sequence of allocations."""

from __future__ import annotations


class Ledger:
    """Live bytes now and at their most.

    >>> ledger = Ledger()
    >>> ledger.take(3)
    3
    >>> ledger.passing(5)
    >>> ledger.drop(1)
    >>> ledger.live, ledger.peak
    (2, 8)
    """

    def __init__(self, live: int = 0) -> None:
        """Begin with ``live`` bytes."""
        self.live = live
        self.peak = live

    def take(self, size: int) -> int:
        """Count an allocation that stays, and return its size."""
        self.live += size
        self.peak = max(self.peak, self.live)
        return size

    def drop(self, size: int) -> None:
        """Count a release."""
        self.live -= size

    def passing(self, *sizes: int) -> None:
        """Count allocations that are released before anything else happens."""
        self.peak = max(self.peak, self.live + sum(sizes))
