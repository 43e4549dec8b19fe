"""What merging does to a stored tensor: changes of rows, so that no matrix need be held whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgetune.methods.targets import Target

Float32 = NDArray[np.float32]


class Update(Protocol):
    """The change of one stored tensor."""

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Change the rows ``start`` to ``stop`` of the tensor, in place."""


class StoredBase(Protocol):
    """The base's tensors as they lie in its files."""

    def __contains__(self, name: object, /) -> bool:
        """Return whether there is a tensor of this name."""

    def read(self, name: str) -> Float32:
        """Return a tensor, whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What becomes of the base: its tensors by name, and projections that get a bias.

    ``added`` holds biases that the base does not have, ``biased`` their projections; ``without`` is
    the method's flag that trains none of these, if it has one.
    """

    changes: Mapping[str, Update]
    added: Mapping[str, Float32] = field(default_factory=dict)
    biased: tuple[Target, ...] = ()
    without: str | None = None


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """Adds ``scale * left @ right``: left (rows, rank), right (rank, columns)."""

    left: Float32
    right: Float32
    scale: float

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Add the rows of the product."""
        delta = self.left[start:stop] @ self.right
        delta *= self.scale
        values += delta


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The change of some rows of a stack, from ``first`` on through all its matrices."""

    first: int
    rows: int
    change: Update


@dataclass(frozen=True, slots=True)
class Stacked:
    """Changes matrices that lie in a stack (E, ``height``, columns), whole or some of their rows."""

    pieces: tuple[Piece, ...]
    height: int

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Change the matrices ``start`` to ``stop``."""
        flat, before = values.reshape(-1, values.shape[-1]), start * self.height
        for piece in self.pieces:
            first = piece.first - before
            if first >= 0 and first + piece.rows <= len(flat):
                piece.change.apply(flat[first : first + piece.rows], 0, piece.rows)


@dataclass(frozen=True, slots=True)
class Scaled:
    """Multiplies rows (scale (rows, 1)) or columns (scale (1, columns)) after another change."""

    scale: Float32
    before: Update | None = None

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Change and scale the rows."""
        if self.before is not None:
            self.before.apply(values, start, stop)
        values *= self.scale[start:stop] if self.scale.shape[1] == 1 else self.scale


@dataclass(frozen=True, slots=True)
class Replaced:
    """Takes other values."""

    values: Float32

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Copy the rows."""
        values[...] = self.values[start:stop]


@dataclass(frozen=True, slots=True)
class Added:
    """Adds other values."""

    values: Float32

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Add the rows."""
        values += self.values[start:stop]


@dataclass(frozen=True, slots=True)
class Normalised:
    """Gives the rows, after another change, the norms ``magnitude`` (rows,)."""

    before: Update
    magnitude: Float32

    def apply(self, values: Float32, start: int, stop: int) -> None:
        """Change, normalise and scale the rows."""
        self.before.apply(values, start, stop)
        norms = np.sqrt(np.square(values, dtype=np.float64).sum(1))
        values *= (self.magnitude[start:stop] / norms).astype(np.float32)[:, None]
