"""What low-rank updates of experts take, as the torch engine computes them: piece by piece.

n rows of all pieces, R rank, K inputs, N outputs of all that read the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.network.ops import ExpertUpdate
from edgetune.shape import Experts
from edgetune.speed.counted import Counted
from edgetune.speed.tally import Tally
from edgetune.storage import FLOAT32_BYTES

TAKEN_A, TAKEN_B, AHEAD, BACK = 3, 4, 8, 4
"""Operations that take an expert's A or B out of the tensors of all, and that multiply by A, or
gradients by B."""

LEARNED_A, LEARNED_B, SELECTED_B = 9, 4, 6
"""Operations that add a gradient of A, or of B; and that find where the latter belongs."""

FILLED = 3
"""Operations by which rows that fill up a piece teach nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Updating:
    """The update of one stack: its sizes, and how many projections it adds to."""

    rank: int
    inputs: int
    outputs: int
    parts: int
    learns_a: bool
    cast: int
    """Whether A and B are rounded to the type of products."""

    @classmethod
    def of(
        cls, role: str, update: ExpertUpdate[Counted], rule: Experts, *, narrow: bool
    ) -> Updating:
        """Return what an update of a mixture is."""
        return cls(
            rank=update.a.shape[0] // rule.number, inputs=update.a.shape[1],
            outputs=update.b.shape[0], learns_a=update.a.needs and not update.fixed,
            parts=2 if role == "gate_up" and rule.clamp is None else 1, cast=int(narrow),
        )  # fmt: skip

    def ahead(self, tally: Tally, rows: float, pieces: float) -> None:
        """Count the way forward."""
        self._lowered(tally, rows, pieces)
        tally.products += 2 * rows * self.rank * self.outputs
        tally.count(pieces * (2 * self.parts if self.parts > 1 else 1))

    def back(self, tally: Tally, rows: float, pieces: float, *, down: bool) -> None:
        """Count the way back: the forward one again, without what ``down`` adds to."""
        if down:
            self._lowered(tally, rows, pieces)
            tally.count(pieces * (3 + self.cast))
        else:
            self.ahead(tally, rows, pieces)
        both, several = self.inputs + self.outputs, self.parts > 1
        learned = self.outputs + self.inputs * self.learns_a
        tally.products += 2 * rows * self.rank * (both + learned)
        launches = TAKEN_B + TAKEN_A + self.cast + 2 + self.parts * (BACK + several) + several
        launches += SELECTED_B + self.parts * (LEARNED_B + several) + LEARNED_A * self.learns_a
        moved = self.rank * (both * self._copied + 5 * FLOAT32_BYTES * learned)
        tally.count(pieces * launches, pieces * moved)

    def _lowered(self, tally: Tally, rows: float, pieces: float) -> None:
        """Count A and B taken out, and the product with A."""
        tally.products += 2 * rows * self.rank * self.inputs
        moved = self.rank * (self.inputs * self.cast + self.outputs) * self._copied
        tally.count(pieces * (TAKEN_A + TAKEN_B + AHEAD + self.cast), pieces * moved)

    @property
    def _copied(self) -> int:
        """Bytes that a number's copy reads and writes."""
        return FLOAT32_BYTES + (FLOAT32_BYTES // 2 if self.cast else FLOAT32_BYTES)
