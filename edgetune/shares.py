"""Who computes which micro-batches of a step, and in which order their gradients are added.

Floats that are added in another order differ in the last bit, and AdamW makes a whole step of the
last bit of a gradient that is all but zero. So the order belongs to the run, not to its ranks: the
micro-batches of a step are dealt to *parts*, each part is added up by itself, and the parts are
added by halves. A rank has one part, or neighbouring ones that are a half, a half of a half, …:
every world of as many ranks as parts, or of fewer, adds the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, lcm
from typing import Final, TypeVar

T = TypeVar("T")

FINENESS: Final = 32
"""The weight of the fastest rank: that of another one is in parts of its own."""

ALIKE: Final = 0.8
"""Ranks of at least so much of the speed of the fastest have equal shares: clocks are not exact."""

Weights = tuple[int, ...]
"""How much of a step each part is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How the ranks of a run share its steps: the least ``parts``, and what tells the data of them.

    ``by_speed``: whether the pilot's times decide how large they are; else they are equal.
    """

    parts: int
    by_speed: bool
    deal: Callable[[Weights], None]


def dealt(sizes: Sequence[int], weights: Weights) -> list[int]:
    """Return the part of each micro-batch: the one that would be done with it first.

    >>> dealt([1, 1, 1, 1], (1, 1)), dealt([1, 1, 1, 1], (3, 1)), dealt([4, 1, 1, 1], (1, 1))
    ([0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 1, 1])
    """
    work, found = [0] * len(weights), []
    for size in sizes:
        done = [(before + size) / weight for before, weight in zip(work, weights, strict=True)]
        part = done.index(min(done))
        work[part] += size
        found.append(part)
    return found


def by_halves(items: Sequence[T], add: Callable[[T, T], T]) -> T:
    """Return the sum of the first half and of the second one, each added up likewise.

    >>> by_halves("abcde", lambda one, other: f"({one}{other})")
    '(((ab)c)(de))'
    """
    if len(items) == 1:
        return items[0]
    middle = _half(len(items))
    return add(by_halves(items[:middle], add), by_halves(items[middle:], add))


def halves_of(part: int, parts: int) -> tuple[int, ...]:
    """Return in which half of some parts one is, in which half of that half, …

    >>> [halves_of(part, 3) for part in range(3)]
    [(0, 0), (0, 1), (1,)]
    """
    if parts == 1:
        return ()
    middle = _half(parts)
    if part < middle:
        return (0, *halves_of(part, middle))
    return (1, *halves_of(part - middle, parts - middle))


def parts_of(rank: int, world: int, parts: int) -> range:
    """Return the parts of a rank, of at least as many as there are ranks.

    >>> [parts_of(rank, 3, 4) for rank in range(3)]
    [range(0, 1), range(1, 2), range(2, 4)]
    """
    start, stop = 0, parts
    while world > 1:
        middle, half = start + _half(stop - start), _half(world)
        if rank < half:
            stop, world = middle, half
        else:
            start, rank, world = middle, rank - half, world - half
    return range(start, stop)


def sums_held(world: int, parts: int) -> int:
    """Return how many sums of gradients wait at most on a rank while another one is made.

    >>> sums_held(1, 1), sums_held(2, 4), sums_held(1, 4), sums_held(1, 5)
    (0, 1, 2, 2)
    """
    most = max(len(parts_of(rank, world, parts)) for rank in range(world))
    return most.bit_length() - 1


def weights_of(speeds: Sequence[float], parts: int) -> Weights:
    """Return the weights of parts whose ranks have these speeds; 0 is one that is not known.

    >>> weights_of([1.0, 0.9], 2), weights_of([1.0, 0.52], 2), weights_of([1.0, 0.5], 3)
    ((1, 1), (32, 17), (1, 1, 1))
    """
    fastest, world = max(speeds), len(speeds)
    if min(speeds) <= 0 or min(speeds) >= ALIKE * fastest:
        return (1,) * parts
    each = [max(1, round(FINENESS * speed / fastest)) for speed in speeds]
    owned = [len(parts_of(rank, world, parts)) for rank in range(world)]
    whole = lcm(*owned)
    weights = [
        weight * whole // count
        for weight, count in zip(each, owned, strict=True)
        for _ in range(count)
    ]
    shared = gcd(*weights)
    return tuple(weight // shared for weight in weights)


def _half(count: int) -> int:
    """Return the size of the first half: the larger one."""
    return (count + 1) // 2
