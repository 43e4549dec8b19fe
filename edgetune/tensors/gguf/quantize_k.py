"""Q4_K, Q5_K and Q6_K: 256 numbers in groups whose scales are themselves quantized.

The scales of the groups are searched for (:mod:`search`), then rounded to whole multiples of one
factor a block, and the factors fitted to what became of the codes. The weighted error is at most
that of the reference quantizer in ``libgguf``, held by the tests.

B is the number of blocks; arrays of groups are (numbers of a group, groups of all blocks).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.tensors.gguf.search import (
    CodeSums,
    Float32,
    Weighted,
    affine_error,
    least_squares,
    reciprocal,
    rounded,
    search_affine,
    search_symmetric,
)

Bytes = NDArray[np.uint8]

_AT_ONCE: Final = 256
"""Blocks that are worked on together: their arrays stay in a processor's cache."""
_TOPS: Final = range(63, 47, -2)
"""Codes that a block's largest scale can get: float16 rounds the factor otherwise each time."""
_REFITS: Final = 4
_TRIES_4: Final = np.arange(-1.0, 1.1, 0.2)
_TRIES_5: Final = np.arange(-0.4, 1.1, 0.2)


def q4_k(blocks: Float32) -> Bytes:
    """Four bits, eight groups with a scale and an offset. (B, 256) to (B, 144)."""
    return _in_parts(blocks, partial(_with_offsets, steps=15, tries=_TRIES_4))


def q5_k(blocks: Float32) -> Bytes:
    """Five bits, eight groups with a scale and an offset. (B, 256) to (B, 176)."""
    return _in_parts(blocks, partial(_with_offsets, steps=31, tries=_TRIES_5))


def q6_k(blocks: Float32) -> Bytes:
    """Six bits, sixteen groups with a signed scale. (B, 256) to (B, 210)."""
    return _in_parts(blocks, _with_signed_scales)


def _in_parts(blocks: Float32, quantize: Callable[[Float32], Bytes]) -> Bytes:
    """Quantize some blocks at a time, on all cores: numpy lets go of the interpreter meanwhile."""
    starts = range(0, max(len(blocks), 1), _AT_ONCE)
    parts = [blocks[start : start + _AT_ONCE] for start in starts]
    with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
        return np.concatenate(list(pool.map(quantize, parts)))


@dataclass(frozen=True, slots=True)
class _Grid:
    """What the codes of blocks stand for: ``d * scales * code - least * offsets``.

    Factors are (B, 1), numbers that float16 has; scales and offsets (B, 8), from 0 to 63.
    """

    d: Float32
    least: Float32
    scales: Float32
    offsets: Float32

    @property
    def scale(self) -> Float32:
        """The scale of every group, (8 B,)."""
        return (self.d * self.scales).reshape(-1)

    @property
    def offset(self) -> Float32:
        """The offset of every group, (8 B,)."""
        return (self.least * self.offsets).reshape(-1)

    def codes(self, x: Float32, steps: int) -> Float32:
        """Return the codes of groups (32, 8 B), from 0 to ``steps``."""
        return rounded((x + self.offset) * reciprocal(self.scale), 0, steps)

    def where(self, better: NDArray[np.bool_], other: _Grid) -> _Grid:
        """Return this grid in the blocks (B, 1) where it is better, and the other elsewhere."""
        return _Grid(
            np.where(better, self.d, other.d),
            np.where(better, self.least, other.least),
            np.where(better, self.scales, other.scales),
            np.where(better, self.offsets, other.offsets),
        )


def _with_offsets(blocks: Float32, steps: int, tries: NDArray[np.float64]) -> Bytes:
    """Quantize to codes from 0 to ``steps``: ``scale * code - offset``."""
    groups = Weighted.of(_groups(blocks, 32))
    grid = _fitted(groups, steps, tries)
    codes = grid.codes(groups.x, steps).astype(np.uint8).T.reshape(-1, 8, 32)
    scales, offsets = grid.scales.astype(np.uint8), grid.offsets.astype(np.uint8)
    parts = [_half(grid.d), _half(grid.least), _packed(scales, offsets)]
    if steps > 15:
        parts.append(np.packbits(codes >> 4, axis=1, bitorder="little").reshape(-1, 32))
    low = codes & 15
    parts.append((low[:, 0::2] | low[:, 1::2] << 4).reshape(-1, 128))
    return np.concatenate(parts, axis=-1)


def _fitted(groups: Weighted, steps: int, tries: NDArray[np.float64]) -> _Grid:
    """Return the best of several roundings of the groups' scales, fitted to its codes."""
    scale, offset = (part.reshape(-1, 8) for part in search_affine(groups, steps, tries))
    least, offsets = _multiples(offset, 63)
    best: _Tried | None = None
    for top in _TOPS:
        d, scales = _multiples(scale, top)
        best = _Tried.of(groups, _Grid(d, least, scales, offsets), steps).or_better(best)
    assert best is not None
    for _ in range(_REFITS):
        best = _Tried.of(groups, _refitted(groups, best), steps).or_better(best)
    return best.grid


@dataclass(frozen=True, slots=True)
class _Tried:
    """A grid, sums over the codes that it gives, and each block's error (B, 1)."""

    grid: _Grid
    sums: CodeSums
    error: Float32

    @classmethod
    def of(cls, groups: Weighted, grid: _Grid, steps: int) -> _Tried:
        """Try a grid."""
        sums = CodeSums.of(groups, grid.codes(groups.x, steps))
        error = _by_block(affine_error(groups, sums, grid.scale, -grid.offset))
        return cls(grid, sums, error)

    def or_better(self, other: _Tried | None) -> _Tried:
        """Return in each block the better of two grids; of equals the other."""
        if other is None:
            return self
        better = self.error < other.error
        by_group = np.broadcast_to(better, (len(better), 8)).reshape(-1)
        mine, others = self.sums, other.sums
        sums = CodeSums(
            np.where(by_group, mine.l, others.l),
            np.where(by_group, mine.ll, others.ll),
            np.where(by_group, mine.xl, others.xl),
        )
        error = np.where(better, self.error, other.error)
        return _Tried(self.grid.where(better, other.grid), sums, error)


def _refitted(groups: Weighted, tried: _Tried) -> _Grid:
    """Return scales, then offsets, then factors that fit the codes of a grid best."""
    grid, sums = tried.grid, tried.sums
    weights, sum_x = groups.sum_w.reshape(-1, 8), groups.sum_x.reshape(-1, 8)
    scale, _ = (part.reshape(-1, 8) for part in least_squares(groups, sums))
    scales = rounded(scale * reciprocal(grid.d), 0, 63)
    level = sums.l.reshape(-1, 8) * scales
    offset = (grid.d * level - sum_x) * reciprocal(weights)
    offsets = rounded(offset * reciprocal(grid.least), 0, 63)
    # the two factors: weighted least squares over all numbers of a block
    aa = _by_block(sums.ll.reshape(-1, 8) * np.square(scales))
    ab, bb = _by_block(level * offsets), _by_block(weights * np.square(offsets))
    ax, bx = _by_block(sums.xl.reshape(-1, 8) * scales), _by_block(sum_x * offsets)
    determinant = aa * bb - np.square(ab)
    inverse = reciprocal(np.maximum(determinant, np.float32(0)))
    least = np.maximum((ab * ax - aa * bx) * inverse, np.float32(0))
    d = np.where(least > 0, (bb * ax - ab * bx) * inverse, ax * reciprocal(aa))
    return _Grid(_as_half(np.maximum(d, np.float32(0))), _as_half(least), scales, offsets)


def _with_signed_scales(blocks: Float32) -> Bytes:
    """Quantize to codes from -32 to 31: ``scale * code``."""
    x = _groups(blocks, 16)
    scales = search_symmetric(x, 32).reshape(-1, 16)
    farthest = np.take_along_axis(scales, np.abs(scales).argmax(-1)[:, None], -1)
    d = _as_half(farthest / np.float32(-128))
    multiples = rounded(scales * (np.float32(-128) * reciprocal(farthest)), -128, 127)
    codes = rounded(x * reciprocal((d * multiples).reshape(-1)), -32, 31) + np.float32(32)
    halves = codes.astype(np.uint8).T.reshape(-1, 2, 4, 32)  # (B, halves, quarters, numbers)
    low, high = halves & 15, halves >> 4
    ql = (low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    qh = np.bitwise_or.reduce(high << shifts, axis=2).reshape(-1, 64)
    return np.concatenate([ql, qh, multiples.astype(np.int8).view(np.uint8), _half(d)], axis=-1)


def _groups(blocks: Float32, size: int) -> Float32:
    """Return blocks (B, 256) as groups (size, 256 B / size)."""
    return np.ascontiguousarray(blocks.reshape(-1, size).T)


def _by_block(values: Float32) -> Float32:
    """Return sums over the eight groups of each block, (B, 1)."""
    total: Float32 = values.reshape(-1, 8).sum(-1, keepdims=True)
    return total


def _multiples(values: Float32, top: int) -> tuple[Float32, Float32]:
    """Return factors (B, 1) and their multiples (B, 8) nearest to values; the largest is ``top``."""
    factor = _as_half(values.max(-1, keepdims=True) / np.float32(top))
    return factor, rounded(values * reciprocal(factor), 0, 63)


def _packed(scales: Bytes, offsets: Bytes) -> Bytes:
    """Return two times eight codes of six bits as bytes (B, 12)."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = offsets[:, :4] | offsets[:, 4:] >> 4 << 6
    return np.concatenate([first, second, scales[:, 4:] & 15 | offsets[:, 4:] << 4], axis=-1)


def _half(values: Float32) -> Bytes:
    return values.astype(np.float16).view(np.uint8)


def _as_half(values: Float32) -> Float32:
    """Return numbers rounded to those that float16 has."""
    largest = np.float32(np.finfo(np.float16).max)
    return np.clip(values, -largest, largest).astype(np.float16).astype(np.float32)
