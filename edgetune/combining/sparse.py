"""Sums of tensors in which only some numbers of each take part: TIES and DARE.

TIES is Yadav et al. 2023 (section 3.1), DARE Yu et al. 2024 (section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def largest(tensor: Float32, density: float) -> Float32:
    """Return a tensor with its largest numbers alone, a share ``density`` of them."""
    count = int(density * tensor.size)
    if count >= tensor.size:
        return tensor
    chosen = np.argpartition(np.abs(tensor).ravel(), tensor.size - count)[tensor.size - count :]
    kept = np.zeros(tensor.size, np.float32)
    kept[chosen] = tensor.ravel()[chosen]
    return kept.reshape(tensor.shape)


def drawn(tensor: Float32, density: float, draw: np.random.Generator) -> Float32:
    """Return a tensor of which each number stays with probability ``density``, scaled up for it."""
    kept = draw.random(tensor.shape, np.float32) < density
    thinned: Float32 = np.where(kept, tensor / np.float32(density), 0).astype(np.float32)
    return thinned


def weighted(tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
    """Return the weighted sum."""
    total = np.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total += np.float32(weight) * tensor
    return total


def elected(tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
    """Return the weighted mean of those numbers whose sign is that of the sum of all."""
    positive = sum(tensors[1:], tensors[0]) >= 0
    total = np.zeros_like(tensors[0])
    count = np.zeros_like(total)
    for tensor, weight in zip(tensors, weights, strict=True):
        agrees = np.where(positive, tensor > 0, tensor < 0)
        total += np.where(agrees, np.float32(weight) * tensor, np.float32(0))
        count += agrees
    mean: Float32 = total / np.maximum(count, np.float32(1))
    return mean
