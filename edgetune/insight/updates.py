"""Low-rank updates by their factors: no product of a full matrix's size is ever formed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetune.adapters import LoadedAdapter
from edgetune.methods.lora import LowRank
from edgetune.methods.merging import LowRankUpdate
from edgetune.methods.targets import Target
from edgetune.methods.vera import Vera
from edgetune.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The singular values of an update, largest first."""

    values: tuple[float, ...]

    @property
    def norm(self) -> float:
        """The Frobenius norm."""
        return float(np.sqrt(np.square(self.values).sum()))

    @property
    def effective_rank(self) -> float:
        """How many equal values would be as spread out: the sum's square over that of squares."""
        squares = float(np.square(self.values).sum())
        return float(sum(self.values) ** 2 / squares) if squares else 0.0


def updates(adapter: LoadedAdapter, shape: ModelShape) -> dict[Target, LowRankUpdate] | None:
    """Return what an adapter adds to each matrix; None for methods that add nothing like that.

    Of DoRA it is what turns the direction, before magnitudes.
    """
    method = adapter.method
    if not isinstance(method, LowRank | Vera):
        return None
    if isinstance(method, Vera):
        return {target: method.update(target, adapter.tensors) for target in method.select(shape)}
    found: dict[Target, LowRankUpdate] = {}
    for target in method.select(shape):
        found |= method.updates(target, adapter.tensors)
    return found


def spectrum(update: LowRankUpdate) -> Spectrum:
    """Return the singular values of an update, as many as its rank."""
    _, above = np.linalg.qr(update.left.astype(np.float64))
    _, below = np.linalg.qr(update.right.T.astype(np.float64))
    found = np.linalg.svd(above @ below.T, compute_uv=False) * abs(update.scale)
    return Spectrum(values=tuple(map(float, found)))


def inner(one: LowRankUpdate, other: LowRankUpdate) -> float:
    """Return the sum of the products of two updates' numbers."""
    left = _wide(one.left).T @ _wide(other.left)
    right = _wide(one.right) @ _wide(other.right).T
    return float((left * right).sum()) * one.scale * other.scale


def _wide(x: NDArray[np.float32]) -> NDArray[np.float64]:
    return x.astype(np.float64)
