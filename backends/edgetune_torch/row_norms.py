"""Norms of the rows of a matrix with a low-rank update, without forming the sum (DoRA).

N outputs, K inputs, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgetune.network.ops import KeptNorms, Key
from edgetune_torch.matrices import Matrix

ROWS = 128
"""Rows of a matrix that are in float32 at a time."""


@torch.no_grad()
def row_norms(
    key: Key,
    matrix: Matrix,
    dtype: torch.dtype,
    a: Tensor,
    b: Tensor,
    scale: float,
    kept: KeptNorms[Tensor],
) -> Tensor:
    """Return the norms (N) of the rows of ``W + scale * B A``, W in ``dtype``.

    ``|W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>`` by row. The first term is computed once and
    kept, the sum once for each state of A and B.
    """
    if key not in kept.norms:
        dense, gram = matrix.dense(dtype), a @ a.T
        spans = [slice(start, start + ROWS) for start in range(0, len(b), ROWS)]
        if key not in kept.squares:
            kept.squares[key] = torch.cat([_squares(dense[rows]) for rows in spans])
        cross = torch.cat([_crossed(dense[rows], a, b[rows]) for rows in spans])
        own = torch.cat([(b[rows] @ gram).mul_(b[rows]).sum(1) for rows in spans])
        squares = kept.squares[key] + 2 * scale * cross + scale**2 * own
        kept.norms[key] = squares.clamp_min(0).sqrt()
    return kept.norms[key]


def _squares(dense: Tensor) -> Tensor:
    """Return the squared norms of some rows."""
    norms: Tensor = torch.linalg.vector_norm(dense.float(), dim=1)
    return norms.square()


def _crossed(dense: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``<W A^T, B>`` of some rows of W (N, K) and B (N, R)."""
    return (dense.float() @ a.T).mul_(b).sum(1)
