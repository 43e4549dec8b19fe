"""What each block reads besides the stream: per-layer embeddings, whose table stays on disk.

B rows, S positions, T = B S tokens, D hidden size, L layers, P numbers of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.model import StoredTensor
from edgetune.shape import ModelShape
from edgetune.tensors.finite import require_finite
from edgetune.tensors.gguf.rows import read_gguf_rows
from edgetune.tensors.gguf.tensor import GgufTensor
from edgetune.tensors.raw import fill, number_type
from edgetune_mlx import pointwise
from edgetune_mlx.precision import DTYPES

PIECE = 256
"""Tokens whose rows of the table, which are wide, are in memory at a time."""


@dataclass(frozen=True, slots=True)
class RowsOnDisk:
    """A matrix of which only the rows that are asked for are ever read."""

    stored: StoredTensor

    def rows(self, tokens: NDArray[np.int64]) -> mx.array:
        """Return rows (T, columns) as they are stored; each different one is read once.

        Raises:
            ModelError: if they are not finite, or the file ends early.
        """
        # what has no row is as the first
        known = np.where(tokens < self.stored.shape[0], tokens, 0)
        wanted, places = np.unique(known, return_inverse=True)
        values = self._read(wanted.tolist())
        require_finite(replace(self.stored, dtype=values.dtype.name), values.view(np.uint8).data)
        bits = values.view(np.uint32 if values.itemsize == 4 else np.uint16)
        return mx.array(bits).view(DTYPES[values.dtype.name])[mx.array(places)]

    def _read(self, rows: Sequence[int]) -> NDArray[Any]:
        stored = self.stored
        if isinstance(stored, GgufTensor):
            each = [read_gguf_rows(stored, row, row + 1) for row in rows]
            return np.ascontiguousarray(np.concatenate(each))
        values = np.empty((len(rows), stored.shape[1]), number_type(stored.dtype))
        for row, place in zip(rows, values, strict=True):
            fill(place, stored.file, stored.start + row * place.nbytes)
        return values


@dataclass(frozen=True, slots=True)
class PerLayerWeights:
    """The table (V, L P) in its file, the projection (L P, D) and the norm (P,)."""

    table: RowsOnDisk
    projection: mx.array
    norm: mx.array

    def inputs(self, tokens: mx.array, x: mx.array, shape: ModelShape) -> Sequence[mx.array]:
        """Return what each block reads (B, S, P) of tokens (B, S), whose embeddings are x."""
        count, size = shape.layers, self.projection.shape[0] // shape.layers
        found = self._looked_up(np.array(tokens).reshape(-1), x.dtype, count)
        scale = mx.array(sqrt(size), DTYPES[shape.dtype]).item()
        inputs: list[mx.array] = []
        for layer in range(count):
            rows = found.pop(0)
            matrix = self.projection[layer * size : (layer + 1) * size].astype(x.dtype)
            made = pointwise.norm(
                (x @ matrix.T) * shape.hidden_size**-0.5, shape.norm, self.norm, None
            )
            inputs.append((made + rows.reshape(made.shape) * scale) * 2**-0.5)
            mx.eval(inputs[-1])
        return inputs

    def _looked_up(self, tokens: NDArray[np.int64], dtype: mx.Dtype, layers: int) -> list[mx.array]:
        """Return the rows of tokens (T,) by layer, L times (T, P)."""
        found: list[list[mx.array]] = [[] for _ in range(layers)]
        for start in range(0, len(tokens), PIECE):
            rows = self.table.rows(tokens[start : start + PIECE]).astype(dtype)
            for parts, part in zip(found, mx.split(rows, layers, axis=-1), strict=True):
                parts.append(mx.contiguous(part))
            mx.eval([parts[-1] for parts in found])
        return [parts[0] if len(parts) == 1 else mx.concatenate(parts) for parts in found]
