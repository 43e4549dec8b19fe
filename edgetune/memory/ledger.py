"""Counting live bytes through a sequence of allocations."""

from __future__ import annotations


class Ledger:
    """Live bytes now and at their most.

    >>> ledger = Ledger()
    >>> ledger.alloc(3)
    3
    >>> ledger.transient(5)
    >>> ledger.free(1)
    >>> ledger.live, ledger.peak
    (2, 8)
    """

    def __init__(self, live: int = 0) -> None:
        """Begin with ``live`` bytes."""
        self.live = live
        self.peak = live

    def alloc(self, size: int) -> int:
        """Count an allocation that stays, and return its size."""
        self.live += size
        self.peak = max(self.peak, self.live)
        return size

    def free(self, size: int) -> None:
        """Count a release."""
        self.live -= size

    def transient(self, *sizes: int) -> None:
        """Count allocations that are released before anything else happens."""
        self.peak = max(self.peak, self.live + sum(sizes))
