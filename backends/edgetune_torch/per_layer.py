"""What each block reads besides the stream: per-layer embeddings, whose table stays on disk.

B rows, S positions, T = B S tokens, D hidden size, L layers, P numbers of one block.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from edgetune.shape import ModelShape
from edgetune_torch import pointwise
from edgetune_torch.linear import multiplied
from edgetune_torch.matrices import DenseMatrix
from edgetune_torch.vocabulary import Embedding
from edgetune_torch.workspace import Workspace

PIECE = 256
"""Tokens whose rows of the table, which are wide, are in memory at a time."""


@dataclass(frozen=True, slots=True)
class PerLayerWeights:
    """The table (V, L P) in its file, the projection (L P, D) and the norm (P,)."""

    table: Embedding
    projection: Tensor
    norm: Tensor
    workspace: Workspace
    rows: int
    """Of the table."""

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.projection.nbytes + self.norm.nbytes

    @torch.no_grad()
    def inputs(self, tokens: Tensor, x: Tensor, shape: ModelShape) -> Tensor:
        """Return what each block reads (L, B, S, P) of tokens (B, S), whose embeddings are x."""
        inputs = self._looked_up(tokens.flatten(), x.dtype, shape.layers)
        flat = x.flatten(0, 1)
        for layer, own in enumerate(inputs):
            made = multiplied(flat, self._matrix(layer, own.shape[-1]), None)
            made = pointwise.norm(made * shape.hidden_size**-0.5, shape.norm, self.norm, None)
            own.add_(made).mul_(2**-0.5)
        return inputs.view(shape.layers, *tokens.shape, -1)

    def _looked_up(self, tokens: Tensor, dtype: torch.dtype, layers: int) -> Tensor:
        """Return the rows of tokens (T,) by layer (L, T, P)."""
        size = self.projection.shape[0] // layers
        found = torch.empty(layers, len(tokens), size, dtype=dtype, device=tokens.device)
        scale = float(torch.tensor(sqrt(size), dtype=self.table.dtype))
        tokens = torch.where(tokens < self.rows, tokens, 0)  # what has no row is as the first
        for start in range(0, len(tokens), PIECE):
            rows = self.table.rows(tokens[start : start + PIECE])
            found[:, start : start + PIECE] = rows.view(-1, layers, size).transpose(0, 1)
            del rows  # they must not live on beside the next ones
        return found.mul_(scale)

    def _matrix(self, layer: int, size: int) -> DenseMatrix:
        rows = self.projection[layer * size : (layer + 1) * size]
        return DenseMatrix((size, rows.shape[1]), {"values": rows}, self.workspace)
