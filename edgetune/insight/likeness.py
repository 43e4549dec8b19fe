"""How alike two adapters are: a cosine, 1 for the same direction."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.insight.updates import inner, updates
from edgetune.methods.prompt import NAME, Prompt
from edgetune.shape import ModelShape


def likeness(one: LoadedAdapter, other: LoadedAdapter, shape: ModelShape) -> float | None:
    """Return the cosine of two adapters over the same model; None if they cannot be compared.

    Of prompts it is that of their mean rows (Vu et al. 2022, section 5.1), which may be differently
    many; of low-rank methods that of their updates; else that of all tensors.
    """
    if isinstance(one.method, Prompt) and isinstance(other.method, Prompt):
        return _cosine(one.tensors[NAME].mean(0), other.tensors[NAME].mean(0))
    mine, theirs = updates(one, shape), updates(other, shape)
    if mine is not None and theirs is not None:
        product = sum(inner(mine[target], theirs[target]) for target in mine if target in theirs)
        squares = [sum(inner(x, x) for x in found.values()) for found in (mine, theirs)]
        return _ratio(product, *squares)
    shapes = [{name: x.shape for name, x in each.tensors.items()} for each in (one, other)]
    if one.method.kind != other.method.kind or shapes[0] != shapes[1]:
        return None
    names = sorted(one.tensors)
    return _cosine(*(np.concatenate([x.tensors[n].ravel() for n in names]) for x in (one, other)))


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return _ratio(float(one @ other), float(one @ one), float(other @ other))


def _ratio(product: float, square: float, other: float) -> float:
    """Return a cosine; what is nothing is like nothing."""
    return product / sqrt(square * other) if square and other else 0.0
