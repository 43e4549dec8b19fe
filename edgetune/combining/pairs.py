"""One target's A (rank, inputs) and B (outputs, rank) of several adapters made into one pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, sqrt

import numpy as np
from numpy.typing import NDArray

from edgetune.combining.recipe import Recipe
from edgetune.combining.sparse import drawn, elected, largest, weighted
from edgetune.errors import UsageError
from edgetune.methods.initial import generator

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pair:
    """What an adapter adds to a target: ``factor * b @ a``, its scale times its weight."""

    a: Float32
    b: Float32
    factor: float


def combined_pair(pairs: Sequence[Pair], recipe: Recipe, name: str) -> tuple[Float32, Float32]:
    """Return A and B of the combination, whose scale is 1.

    ``name`` is the target's, by which random numbers are drawn.

    Raises:
        UsageError: if ranks differ and the way needs them to be the same.
    """
    match recipe.how:
        case "cat" | "task-arithmetic" | "lorahub":
            return _beside(pairs)
        case "svd":
            return _principal(pairs, recipe.rank)
        case "linear" | "ties" | "dare_ties" | "dare_linear":
            return _added(pairs, recipe, name)


def _beside(pairs: Sequence[Pair]) -> tuple[Float32, Float32]:
    """Return the exact sum, with the ranks of all."""
    there = [pair for pair in pairs if pair.factor] or list(pairs[:1])
    a = np.concatenate([np.float32(pair.factor) * pair.a for pair in there])
    return a, np.concatenate([pair.b for pair in there], axis=1)


def _principal(pairs: Sequence[Pair], rank: int | None) -> tuple[Float32, Float32]:
    """Return the nearest pair of a rank to the exact sum, by default the largest of theirs.

    The product is never formed: its factors are made orthogonal, and what is between them is small.
    """
    a, b = (x.astype(np.float64) for x in _beside(pairs))
    left, above = np.linalg.qr(b)
    right, below = np.linalg.qr(a.T)
    u, s, v = np.linalg.svd(above @ below.T)
    count = min(rank or max(len(pair.a) for pair in pairs), len(s))
    root = np.sqrt(s[:count])
    found_a, found_b = root[:, None] * (v[:count] @ right.T), left @ u[:, :count] * root
    return found_a.astype(np.float32), found_b.astype(np.float32)


def _added(pairs: Sequence[Pair], recipe: Recipe, name: str) -> tuple[Float32, Float32]:
    """Return sums of the As and of the Bs, each with the root of the weight."""
    ranks = sorted({len(pair.a) for pair in pairs})
    if len(ranks) > 1:
        raise UsageError(
            f"--how {recipe.how} adds numbers one by one and needs one rank; {name} has "
            f"{', '.join(map(str, ranks))}. Take --how cat or svd."
        )
    roots = [sqrt(abs(pair.factor)) for pair in pairs]
    signed = [copysign(root, pair.factor) for root, pair in zip(roots, pairs, strict=True)]
    a = _sum([pair.a for pair in pairs], signed, recipe, f"{name}.A")
    return a, _sum([pair.b for pair in pairs], roots, recipe, f"{name}.B")


def _sum(
    tensors: Sequence[Float32], weights: Sequence[float], recipe: Recipe, name: str
) -> Float32:
    match recipe.how:
        case "ties":
            return elected([largest(tensor, recipe.kept) for tensor in tensors], weights)
        case "dare_ties":
            return elected(_thinned(tensors, recipe, name), weights)
        case "dare_linear":
            return weighted(_thinned(tensors, recipe, name), weights)
        case _:
            return weighted(tensors, weights)


def _thinned(tensors: Sequence[Float32], recipe: Recipe, name: str) -> list[Float32]:
    """Return the tensors with numbers dropped; which ones is a function of seed, name and place."""
    seed = recipe.seed or 0
    draws = (generator(f"{name}.{place}", seed) for place in range(len(tensors)))
    return [drawn(x, recipe.kept, draw) for x, draw in zip(tensors, draws, strict=True)]
