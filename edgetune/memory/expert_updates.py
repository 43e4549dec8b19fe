"""Bytes of low-rank updates of experts, as the torch engine computes them for n rows of one.

R rank, K inputs, N outputs of all that read the same. Scratch for widened rows is counted with that
of the products.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.memory.ledger import Ledger
from edgetune.memory.sized import Sized
from edgetune.network.ops import ExpertUpdate
from edgetune.storage import FLOAT32_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """A and B of one expert: their sizes, what of them learns, bytes of a number in products."""

    rank: int
    inputs: int
    outputs: int
    learns_a: bool
    learns_b: bool
    width: int

    @classmethod
    def of(cls, update: ExpertUpdate[Sized], experts: int, width: int) -> Factors:
        """Return the factors of each of so many experts."""
        return cls(
            rank=update.a.shape[0] // experts, inputs=update.a.shape[1],
            outputs=update.b.shape[0], learns_a=update.a.needs, learns_b=update.b.needs,
            width=width,
        )  # fmt: skip

    @property
    def a(self) -> int:
        """Bytes of an expert's A, where it is a copy: float32 is read where it is."""
        return 0 if self.width == FLOAT32_BYTES else self.rank * self.inputs * self.width

    @property
    def b(self) -> int:
        """Bytes of an expert's B, always a copy."""
        return self.rank * self.outputs * self.width

    def low(self, rows: int) -> int:
        """Return the bytes of what A makes of rows, or B of gradients."""
        return rows * self.rank * self.width

    def ahead(self, ledger: Ledger, rows: int) -> int:
        """Multiply by A; return the bytes that stay: those of B, and of what A made."""
        copy = ledger.alloc(self.a)
        stay = ledger.alloc(self.b) + ledger.alloc(self.low(rows))
        ledger.free(copy)
        return stay

    def back(self, ledger: Ledger, rows: int, parts: int = 1) -> int:
        """Multiply gradients, in parts, by B; return the bytes that stay: those of A, and of that."""
        passing = ledger.alloc(self.b)
        stay = ledger.alloc(self.low(rows))
        passing += ledger.alloc(self.low(rows) if parts > 1 else 0)
        stay += ledger.alloc(self.a)
        ledger.free(passing)
        return stay

    def learn(self, ledger: Ledger, parts: int = 1) -> None:
        """Add the gradients; those in a narrow type are widened on their way."""
        wide = FLOAT32_BYTES if self.width != FLOAT32_BYTES else 0
        if self.learns_b:
            ledger.transient(self.rank * (self.outputs // parts) * (self.width + wide))
        if self.learns_a:
            ledger.transient(self.rank * self.inputs * (self.width + wide))

    def learn_with_shares(self, ledger: Ledger, rows: int) -> None:
        """Add the gradients of rows that have weights, for which A multiplies once more."""
        held = self.ahead(ledger, rows)
        ledger.free(self.b)
        held += ledger.alloc(self.low(rows)) - self.b
        held += ledger.alloc(0 if self.width == FLOAT32_BYTES else rows * self.width)
        self.learn(ledger)
        ledger.free(held)
