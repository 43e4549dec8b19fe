"""Several adapters in one batch, a row with one of them each or with none.

What is frozen and the same for all rows is computed for all rows; a block's weights are brought
to the device once, and each matrix is unpacked once for all adapters. At the places where a
method may step in, neighbouring rows of the same adapter go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from edgetune.shape import Linear, NormKind
from edgetune_torch.adaptation import Adaptation, Attended, Sublayer
from edgetune_torch.matrices import Matrix
from edgetune_torch.workspace import Workspace


def mixed(rows: Sequence[Adaptation]) -> Adaptation:
    """Return the adaptation of a batch whose rows have these."""
    return rows[0] if all(row is rows[0] for row in rows) else Mixed(rows)


class Mixed(Adaptation):
    """Lets each row's adaptation step in for it. Inference only: all see one state of a matrix."""

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

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return the embeddings (B, S, D) of tokens at positions (B, S)."""
        return torch.cat([one.embed(x[at], positions[at]) for at, one in self._parts])

    def norm(
        self,
        layer: int | None,
        role: str,
        x: Tensor,
        kind: NormKind,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Return x (B, ...) normalised."""
        parts = [one.norm(layer, role, x[at], kind, weight, bias) for at, one in self._parts]
        return torch.cat(parts)

    def project(
        self, layer: int, linear: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None
    ) -> Tensor:
        """Return a block's projection of x (B, S, inputs)."""
        once = _Once(matrix)
        return torch.cat([one.project(layer, linear, x[at], once, bias) for at, one in self._parts])

    def attend(self, attended: Attended) -> Tensor:
        """Return the output (B, H, S, h) of a layer's attention."""
        return torch.cat([one.attend(attended.of_rows(at)) for at, one in self._parts])

    def sublayer(self, layer: int, which: Sublayer, x: Tensor, out: Tensor) -> Tensor:
        """Return what one half of a block adds to the stream (B, S, D)."""
        return torch.cat([one.sublayer(layer, which, x[at], out[at]) for at, one in self._parts])


class _Once:
    """A matrix that is unpacked once for several products in a row."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._found: tuple[torch.dtype, Tensor] | None = None

    @property
    def workspace(self) -> Workspace:
        return self._matrix.workspace

    @property
    def nbytes(self) -> int:
        return self._matrix.nbytes

    def dense(self, dtype: torch.dtype) -> Tensor:
        if self._found is None or self._found[0] != dtype:
            self._found = dtype, self._matrix.dense(dtype)
        return self._found[1]
