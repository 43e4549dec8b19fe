"""The search on one rung: of everything that changes only memory and time, the fastest that fits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import inf

from edgetune.choice import Choice
from edgetune.memory import MemoryEstimate, MemoryModel
from edgetune.methods.base import Method
from edgetune.planning.capability import platform_of
from edgetune.planning.ladder import Rung
from edgetune.planning.problem import SearchProblem
from edgetune.planning.space import Space
from edgetune.speed import Rates, TimeModel


@dataclass(frozen=True, slots=True)
class Found:
    """A choice with its bytes and its seconds a step."""

    choice: Choice
    memory: MemoryEstimate
    seconds: float


class Search:
    """Weighs choices for one request."""

    def __init__(self, problem: SearchProblem, rates: Rates) -> None:
        """Prepare for the rungs of a request."""
        self.problem = problem
        self.space = Space(problem)
        self.rates = rates
        self._memory = cache(self._memory_model)
        self.least = cache(self._least)
        """The choice of a rung that needs the fewest bytes."""
        self.times = cache(self._time_model)
        """The times of a method's choices."""

    def fastest(self, rung: Rung) -> Found | None:
        """Return the fastest choice of a rung within the budget; of equals, the plainest.

        Starts are taken in the order of what they would take with memory without end, so that the
        search ends at the first that could not be faster.
        """
        budget = self.problem.budget
        starts = (start for start in self.space.starts(rung) if self._resting(start) <= budget)
        ranked = sorted((self._at_best(start), place, start) for place, start in enumerate(starts))
        best: tuple[float, int, Found] | None = None
        for bound, place, start in ranked:
            if best is not None and (bound, place) > best[:2]:
                break
            for found in self._cuts(start, inf if best is None else best[0]):
                if best is None or (found.seconds, place) < best[:2]:
                    best = found.seconds, place, found
        return None if best is None else best[2]

    def _least(self, rung: Rung) -> Found | None:
        """Return the choice of a rung that needs the fewest bytes; of equals, the plainest.

        Starts are taken in the order of what they hold at rest, so that the search ends at the
        first that holds more than another one needs. Of those that sum gradients over micro-batches
        the one with the fewest rows needs the least.
        """
        fewest = self.space.rows[-1][0]
        starts = (
            (self._resting(start), place, start)
            for place, start in enumerate(self.space.starts(rung))
            if start.accumulation == 1 or start.micro_batch == fewest
        )
        best: tuple[int, int, Choice] | None = None
        for resting, place, start in sorted(starts, key=lambda each: each[:2]):
            if best is not None and resting > best[0]:
                break
            for kept in self.space.ends(start):
                choice = replace(start, checkpointing=kept)
                peak = self._peak(choice)
                if best is None or (peak, place) < best[:2]:
                    best = peak, place, choice
        return None if best is None else self.weigh(best[2])

    def weigh(self, choice: Choice) -> Found:
        """Return a choice with its bytes and seconds."""
        memory = self._memory(choice.method).estimate(choice)
        return Found(choice, memory, self._seconds(choice))

    def fits(self, choice: Choice) -> bool:
        """Tell whether a choice stays within the budget."""
        return self._peak(choice) <= self.problem.budget

    def _peak(self, choice: Choice) -> int:
        """Return the most bytes that a run of a choice takes."""
        return self._memory(choice.method).estimate(choice).peak_bytes

    def _resting(self, start: Choice) -> int:
        """Return the bytes that a choice takes before anything is computed."""
        return self._memory(start.method).between_steps(start)

    def _at_best(self, start: Choice) -> float:
        """Return the seconds of a start with the least checkpointing and the largest chunk."""
        least, _ = self.space.ends(start)
        return self._seconds(replace(start, checkpointing=least, loss_chunk=self.space.chunks[0]))

    def _seconds(self, choice: Choice) -> float:
        return self.times(choice.method).seconds(choice)

    def _cuts(self, start: Choice, limit: float) -> Iterator[Found]:
        """Yield choices that fit: for each chunk the one with the fewest blocks checkpointed.

        Those that would take more than ``limit`` seconds are left out.
        """
        low, high = (kept.layers for kept in self.space.ends(start))
        high = self._most(replace(start, loss_chunk=self.space.chunks[0]), low, high, limit)
        for chunk in reversed(self.space.chunks):
            choice = replace(start, loss_chunk=chunk)
            if low > high or not self.fits(self.space.with_layers(choice, high)):
                return  # a larger chunk would not fit either
            if self._seconds(self.space.with_layers(choice, low)) > limit:
                continue
            low = self._fewest(choice, low, high)
            yield self.weigh(self.space.with_layers(choice, low))

    def _most(self, choice: Choice, low: int, high: int, limit: float) -> int:
        """Return the most checkpointed blocks within ``limit`` seconds, ``low - 1`` if none is.

        Every further block takes time.
        """
        if limit == inf:
            return high
        within = bisect_right(
            range(low, high + 1),
            limit,
            key=lambda layers: self._seconds(self.space.with_layers(choice, layers)),
        )
        return low - 1 + within

    def _fewest(self, choice: Choice, low: int, high: int) -> int:
        """Return the fewest checkpointed blocks that fit; every further one frees memory.

        ``high`` are known to.
        """
        short = bisect_left(
            range(low, high),
            True,
            key=lambda layers: self.fits(self.space.with_layers(choice, layers)),
        )
        return low + short

    def _memory_model(self, method: Method) -> MemoryModel:
        problem = self.problem
        return MemoryModel(
            problem.shape, method, platform_of(problem.device),
            documents=problem.documents, objective=problem.objective,
            sums_held=problem.sums_held,
            forked=bool(problem.training.share_prompts),
        )  # fmt: skip

    def _time_model(self, method: Method) -> TimeModel:
        problem = self.problem
        return TimeModel(
            problem.shape, method, self.rates, problem.objective, documents=problem.documents
        )
