"""Which scales represent groups of numbers best, in few codes and by weighted squares of errors.

A few scales around the obvious one are tried, each with the scale (and offset) that fits its codes
best by weighted least squares; the best is kept. Large numbers weigh more.

Arrays of groups lie with the numbers of a group first, (G, M), so that sums over a group run
along memory: M is the number of groups, G the numbers of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_TINY: Final = np.float32(1e-15)
"""Groups of nothing larger are zero."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """Groups ``x`` (G, M) and how much each number matters; their sums are (M,)."""

    x: Float32
    weight: Float32
    sum_w: Float32
    sum_x: Float32
    sum_xx: Float32

    @classmethod
    def of(cls, x: Float32) -> Weighted:
        """Weigh each number by its size and that of its group's root mean square."""
        weight = np.abs(x) + np.sqrt(np.square(x).mean(0))
        weighted = weight * x
        return cls(x, weight, weight.sum(0), weighted.sum(0), _dot(weighted, x))


@dataclass(frozen=True, slots=True)
class CodeSums:
    """Weighted sums (M,) over the codes ``l`` of groups: what least squares are made of."""

    l: Float32  # noqa: E741 (the codes' name in the equations)
    ll: Float32
    xl: Float32

    @classmethod
    def of(cls, groups: Weighted, codes: Float32) -> CodeSums:
        """Return the sums for codes (G, M)."""
        by_weight = groups.weight * codes
        return cls(by_weight.sum(0), _dot(by_weight, codes), _dot(by_weight, groups.x))


def search_affine(
    groups: Weighted, steps: int, tries: NDArray[np.float64]
) -> tuple[Float32, Float32]:
    """Return scales and offsets (M,) for ``x = scale * code - offset``, both not below 0.

    Codes go from 0 to ``steps``; ``tries`` are added to ``steps`` for the first scale of each try.
    """
    x = groups.x
    least = np.minimum(x.min(0), np.float32(0))
    above, inverse = x - least, reciprocal(x.max(0) - least)
    best = np.full_like(inverse, np.inf)
    best_scale, best_least = np.zeros_like(inverse), least
    for more in tries:
        codes = rounded(above * (np.float32(steps + more) * inverse), 0, steps)
        sums = CodeSums.of(groups, codes)
        scale, low = least_squares(groups, sums)
        error = affine_error(groups, sums, scale, low)
        better = error < best
        best = np.where(better, error, best)
        best_scale = np.where(better, scale, best_scale)
        best_least = np.where(better, low, best_least)
    return best_scale, -best_least


def affine_error(groups: Weighted, sums: CodeSums, scale: Float32, low: Float32) -> Float32:
    """Return the weighted squared error (M,) of ``scale * code + low``, up to rounding."""
    by_scale = scale * (scale * sums.ll + 2 * (low * sums.l - sums.xl))
    error: Float32 = groups.sum_xx + by_scale + low * (low * groups.sum_w - 2 * groups.sum_x)
    return error


def least_squares(groups: Weighted, sums: CodeSums) -> tuple[Float32, Float32]:
    """Return the scales and least numbers (not above 0) that fit codes best, each (M,)."""
    determinant = groups.sum_w * sums.ll - np.square(sums.l)
    inverse = reciprocal(np.maximum(determinant, np.float32(0)))
    low = (sums.ll * groups.sum_x - sums.l * sums.xl) * inverse
    scale = (groups.sum_w * sums.xl - groups.sum_x * sums.l) * inverse
    through_zero = sums.xl * reciprocal(sums.ll)
    low = np.where(determinant > 0, low, groups.sum_x * reciprocal(groups.sum_w))
    return np.where(low > 0, through_zero, scale), np.minimum(low, np.float32(0))


def search_symmetric(x: Float32, steps: int) -> Float32:
    """Return scales (M,), of either sign, for ``x = scale * code``; x is (G, M).

    Codes go from ``-steps`` to ``steps - 1``; a number weighs its square.
    """
    farthest = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    inverse = -reciprocal(np.where(np.abs(farthest) < _TINY, np.float32(0), farthest))
    weight = np.square(x)
    weighted = weight * x
    best = np.full_like(farthest, -1)
    best_scale: Float32 = np.zeros_like(farthest)
    for more in (0, *range(-9, 0), *range(1, 10)):
        codes = rounded(x * (np.float32(steps + 0.1 * more) * inverse), -steps, steps - 1)
        sum_xl, sum_ll = _dot(weighted, codes), _dot(weight, np.square(codes))
        scale = sum_xl * reciprocal(sum_ll)
        better = scale * sum_xl > best
        best = np.where(better, scale * sum_xl, best)
        best_scale = np.where(better, scale, best_scale)
    return best_scale


def _dot(left: Float32, right: Float32) -> Float32:
    """Return the sums (M,) of products over groups (G, M)."""
    sums: Float32 = np.einsum("gm,gm->m", left, right)
    return sums


def rounded(values: Float32, least: int, most: int) -> Float32:
    """Return values as whole numbers within bounds, in place."""
    np.rint(values, out=values)
    np.clip(values, np.float32(least), np.float32(most), out=values)
    return values


def reciprocal(values: Float32) -> Float32:
    """Return one over each value, 0 for 0."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: Float32 = np.where(values == 0, values, 1 / values)
    return inverse
