"""Several adapters in one batch, a row with one of them each or with none.

What is frozen and the same for all rows is computed for all rows, and a block's weights are
brought once. At the places where a method may step in, neighbouring rows of the same adapter go
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import mlx.core as mx

from edgetune.shape import Linear, NormKind
from edgetune_mlx.adaptation import Adaptation, Attended, Sublayer
from edgetune_mlx.matrices import Matrix


def mixed(rows: Sequence[Adaptation]) -> Adaptation:
    """Return the adaptation of a batch whose rows have these."""
    return rows[0] if all(row is rows[0] for row in rows) else Mixed(rows)


class Mixed(Adaptation):
    """Lets each row's adaptation step in for it; inference only."""

    def __init__(self, rows: Sequence[Adaptation]) -> None:
        """Take the adaptation of each row, which stays as it is in all passes."""
        self._rows = tuple(rows)
        self._parts: list[tuple[slice, Adaptation]] = []
        start = 0
        for _, group in groupby(rows, key=id):
            members = list(group)
            self._parts.append((slice(start, start + len(members)), members[0]))
            start += len(members)

    def of_rows(self, count: int) -> Sequence[Adaptation]:
        """Return the adaptation of each row."""
        if count != len(self._rows):
            raise ValueError(f"{len(self._rows)} rows have adapters, the batch has {count}")
        return self._rows

    def embed(self, x: mx.array, positions: mx.array) -> mx.array:
        """Return the embeddings (B, S, D) of tokens at positions (B, S)."""
        return mx.concatenate([one.embed(x[at], positions[at]) for at, one in self._parts])

    def norm(
        self,
        layer: int | None,
        role: str,
        x: mx.array,
        kind: NormKind,
        weight: mx.array,
        bias: mx.array | None,
    ) -> mx.array:
        """Return x (B, ...) normalised."""
        parts = [one.norm(layer, role, x[at], kind, weight, bias) for at, one in self._parts]
        return mx.concatenate(parts)

    def project(
        self, layer: int, linear: Linear, x: mx.array, matrix: Matrix, bias: mx.array | None
    ) -> mx.array:
        """Return a block's projection of x (B, S, inputs)."""
        return mx.concatenate(
            [one.project(layer, linear, x[at], matrix, bias) for at, one in self._parts]
        )

    def attend(self, attended: Attended) -> mx.array:
        """Return the output (B, H, S, h) of a layer's attention."""
        return mx.concatenate([one.attend(attended.of_rows(at)) for at, one in self._parts])

    def sublayer(self, layer: int, which: Sublayer, x: mx.array, out: mx.array) -> mx.array:
        """Return what one half of a block adds to the stream (B, S, D)."""
        return mx.concatenate(
            [one.sublayer(layer, which, x[at], out[at]) for at, one in self._parts]
        )
