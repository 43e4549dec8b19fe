"""Seconds and operations of all blocks over rows of one shape: what was counted, by the rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil

from edgetune.choice import Choice
from edgetune.speed.blocks import Counts, Works
from edgetune.speed.rates import Rates
from edgetune.speed.rows import Rows
from edgetune.speed.tally import Tally
from edgetune.speed.unpacking import launches_of, weight_seconds

OUTSIDE, ROTATION = 7, 14
"""Operations of a micro-batch beside all that is counted, and for the tables of each rotation."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of some work, how many of them are not products, and the operations it is issued in."""

    seconds: float = 0.0
    touched: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.seconds + other.seconds,
            self.touched + other.touched,
            self.launches + other.launches,
        )

    def __sub__(self, other: Spent) -> Spent:
        return Spent(
            self.seconds - other.seconds,
            self.touched - other.touched,
            self.launches - other.launches,
        )

    def __mul__(self, times: float) -> Spent:
        return Spent(times * self.seconds, times * self.touched, times * self.launches)

    def beside(self, transfer: float) -> Spent:
        """Return the time of computing while the next block's weights are on their way."""
        return Spent(max(self.seconds, transfer), self.touched, self.launches)


class Pricing:
    """What counts cost under a choice, as far as its way to compute goes."""

    def __init__(self, choice: Choice, rows: Rows, rates: Rates) -> None:
        """Look the rates up."""
        self.choice, self.rows, self.rates = choice, rows, rates
        self._product = rates.product(choice.compute_dtype)
        self._wide = rates.product("float32")
        self._attention = rates.attention(choice.compute_dtype)
        self._weight = weight_seconds(choice, rows, rates)
        self._factor = rates.block_factor(choice)

    def spent(self, tally: Tally) -> Spent:
        """Return what a tally costs; a product takes at least the time of reading its matrix."""
        rates, launches = self.rates, launches_of(tally, self.choice, self.rows)
        read = tally.weights * self.rows.product / rates.pointwise
        products = max(tally.products / self._product, read) + tally.wide / self._wide
        moved = tally.moved / rates.pointwise + tally.weights * self._weight
        touched = self._factor * (moved + rates.sharing * launches)
        seconds = products + tally.attention / self._attention + touched
        return Spent(seconds, touched, launches)


class Passes:
    """All blocks, one after another; sums up to each block, so that any number may be computed again."""

    def __init__(
        self, works: Works, pricing: Pricing, *, tiles: int, transfer: float, slower: float
    ) -> None:
        """Price each kind of block once.

        A block computes ``slower`` times as long beside its ``transfer`` of so many seconds.
        """
        self._works, self._pricing = works, pricing
        priced: dict[int, tuple[Spent, Spent, Spent, Spent]] = {}
        each = []
        for kind in works.kinds:
            counts = works.block(kind, pricing.rows, tiles)
            if id(counts) not in priced:
                priced[id(counts)] = _parts(counts, pricing, slower, transfer)
            each.append(priced[id(counts)])
        self._forward, self._back, self._again, state = map(_sums, zip(*each, strict=True))
        self.forward = self._forward[-1]
        """A pass without gradients."""
        self.state = state[-1]
        """What is computed once for each state of what is trained."""

    def training(self, checkpointed: int) -> Spent:
        """Return both passes, where so many blocks are computed again on the way back."""
        first, last = self._works.first, len(self._forward) - 1
        cut = min(max(first, checkpointed), last)
        again = self._again[cut] - self._again[first]
        return self.forward + again + (self._back[last] - self._back[cut])

    def ends(self, chunk: int, *, graded: bool) -> Spent:
        """Return what is done outside of the blocks; the final norm is that of a chunk of the loss."""
        works, pricing = self._works, self._pricing
        rows, spent = pricing.rows, pricing.spent
        embedding = works.embedding(rows)
        found = spent(embedding.forward) + Spent(launches=OUTSIDE + ROTATION * works.rotaries)
        if graded and works.trains_input:
            found += spent(embedding.forward) + spent(embedding.back)
        held = min(chunk, rows.tokens)
        norm = works.final_norm(replace(rows, batch=1, context=held, seen=held))
        one = spent(norm.forward) + spent(norm.back) if graded else spent(norm.forward)
        return found + one * ceil(rows.tokens / held)


def _parts(
    counts: Counts, pricing: Pricing, slower: float, transfer: float
) -> tuple[Spent, Spent, Spent, Spent]:
    """Return a block's forward pass, its way back, that with all before it, and its state."""
    forward, back, keys, state, left_out = (
        _slowed(pricing.spent(tally), slower)
        for tally in (counts.forward, counts.back, counts.keys, counts.state, counts.left_out)
    )
    again = keys + forward - left_out + back
    return forward.beside(transfer), back.beside(transfer), again.beside(transfer), state


def _slowed(spent: Spent, times: float) -> Spent:
    return Spent(times * spent.seconds, spent.touched, spent.launches)


def _sums(parts: Iterable[Spent]) -> list[Spent]:
    """Return the sums of the first 0, 1, 2, ... parts."""
    return list(accumulate(parts, initial=Spent()))
