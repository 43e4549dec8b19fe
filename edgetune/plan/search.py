"""The search on one rung: of everything that changes only memory and time, the fastest that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import inf

from edgetune.choice import Choice
from edgetune.memory import MemoryEstimate, MemoryModel
from edgetune.methods.base import Method
from edgetune.plan.capability import platform_of
from edgetune.plan.ladder import Rung
from edgetune.plan.request import Request
from edgetune.plan.space import Space
from edgetune.speed import Rates, TimeModel


@dataclass(frozen=True, slots=True)
class Found:
    """A choice with its bytes and its seconds a step."""

    choice: Choice
    memory: MemoryEstimate
    seconds: float


class Search:
    """Weighs choices for one request."""

    def __init__(self, request: Request, rates: Rates) -> None:
        """Prepare for the rungs of a request."""
        self.request = request
        self.space = Space(request)
        self.rates = rates
        self._memory = cache(self._memory_model)
        self._time = cache(self._time_model)

    def fastest(self, rung: Rung) -> Found | None:
        """Return the fastest choice of a rung within the budget; of equals, the plainest.

        Starts are taken in the order of what they would take with memory without end, so that the
        search ends at the first that could not be faster.
        """
        budget = self.request.budget
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

    def least(self, rung: Rung) -> Found | None:
        """Return the choice of a rung that needs the fewest bytes."""
        candidates = (
            self.weigh(replace(start, checkpointing=kept))
            for start in self.space.starts(rung)
            for kept in self.space.ends(start)
        )
        return min(candidates, key=lambda found: found.memory.peak_bytes, default=None)

    def weigh(self, choice: Choice) -> Found:
        """Return a choice with its bytes and seconds."""
        memory = self._memory(choice.method).estimate(choice)
        return Found(choice, memory, self._seconds(choice))

    def fits(self, choice: Choice) -> bool:
        """Tell whether a choice stays within the budget."""
        memory = self._memory(choice.method).estimate(choice)
        return memory.peak_bytes <= self.request.budget

    def _resting(self, start: Choice) -> int:
        """Return the bytes that a choice takes before anything is computed."""
        return self._memory(start.method).resting(start)

    def _at_best(self, start: Choice) -> float:
        """Return the seconds of a start with the least checkpointing and the largest chunk."""
        least, _ = self.space.ends(start)
        return self._seconds(replace(start, checkpointing=least, loss_chunk=self.space.chunks[0]))

    def _seconds(self, choice: Choice) -> float:
        return self._time(choice.method).seconds(choice)

    def _cuts(self, start: Choice, limit: float) -> Iterator[Found]:
        """Yield choices that fit: for each chunk the one with the fewest blocks checkpointed.

        Those that would take more than ``limit`` seconds are left out.
        """
        least, _ = self.space.ends(start)
        layers = least.layers
        for chunk in reversed(self.space.chunks):
            choice = replace(start, loss_chunk=chunk)
            if self._seconds(self.space.with_layers(choice, layers)) > limit:
                continue
            found = self._fewest(choice, layers)
            if found is None:
                return  # a larger chunk would not fit either
            layers = found
            yield self.weigh(self.space.with_layers(choice, layers))

    def _fewest(self, choice: Choice, known: int) -> int | None:
        """Return the fewest checkpointed blocks that fit; every further one frees memory.

        Fewer than ``known`` do not.
        """
        low, high = known, self.space.ends(choice)[1].layers
        if self.fits(self.space.with_layers(choice, low)):
            return low
        if not self.fits(self.space.with_layers(choice, high)):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(self.space.with_layers(choice, middle)):
                high = middle
            else:
                low = middle
        return high

    def _memory_model(self, method: Method) -> MemoryModel:
        request = self.request
        return MemoryModel(
            request.shape, method, platform_of(request.device), documents=request.documents
        )

    def _time_model(self, method: Method) -> TimeModel:
        return TimeModel(self.request.shape, method, self.rates)
