"""How adapters are put together, and with what weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Final, Literal, get_args

from edgetune.errors import UsageError

How = Literal[
    "linear", "cat", "svd", "ties", "dare_ties", "dare_linear", "task-arithmetic", "lorahub"
]
HOW: Final[tuple[How, ...]] = get_args(How)

DENSE: Final = frozenset({"ties", "dare_ties", "dare_linear"})
"""Ways that leave some numbers of each adapter out."""
DRAWN: Final = frozenset({"dare_ties", "dare_linear"})
"""Those that draw which."""
SUMMED: Final = frozenset({"ties", "dare_ties", "task-arithmetic"})
"""Ways whose weights are 1 if none are given; of the others they average."""
DENSITY: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A way to combine adapters, a weight for each, and what only some ways read.

    ``density`` is the share of numbers that are kept, ``rank`` that of the result of svd.

    Raises:
        UsageError: if a number means nothing, or if the way does not read it.
    """

    how: How
    weights: tuple[float, ...]
    density: float | None = None
    rank: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing and what nothing reads."""
        if not all(map(isfinite, self.weights)) or not any(self.weights):
            raise UsageError(
                f"--weights must be finite, and one of them not 0; found {self.weights}."
            )
        for name, ways in (("density", DENSE), ("rank", {"svd"}), ("seed", DRAWN)):
            if getattr(self, name) is not None and self.how not in ways:
                raise UsageError(
                    f"--how {self.how} does not use --{name}, which is for {', '.join(sorted(ways))}."
                )
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"--density must be above 0 and at most 1; found {self.density}.")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"--rank must be 1 or more; found {self.rank}.")

    @classmethod
    def usual_weights(cls, how: How, count: int) -> tuple[float, ...]:
        """Return the weights that a way has if none are given."""
        return (1.0 if how in SUMMED else 1.0 / count,) * count

    @property
    def kept(self) -> float:
        """The share of numbers that are kept of each adapter."""
        return DENSITY if self.density is None else self.density
