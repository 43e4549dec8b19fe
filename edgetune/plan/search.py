"""The search on one rung: of everything that changes only memory and time, the fastest that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

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
        """Return the fastest choice of a rung within the budget; of equals, the plainest."""
        best: Found | None = None
        for start in self.space.starts(rung):
            if self._resting(start) > self.request.budget:
                continue
            if best is not None and self._at_best(start) >= best.seconds:
                continue
            for found in self._cuts(start):
                if best is None or found.seconds < best.seconds:
                    best = found
        return best

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
        return Found(choice, memory, self._time(choice.method).seconds(choice))

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
        choice = replace(start, checkpointing=least, loss_chunk=self.space.chunks[0])
        return self._time(choice.method).seconds(choice)

    def _cuts(self, start: Choice) -> Iterator[Found]:
        """Yield choices that fit: the fewest blocks checkpointed for small and large chunks."""
        chunks = self.space.chunks
        for chunk in dict.fromkeys((chunks[-1], chunks[0])):
            layers = self._fewest(replace(start, loss_chunk=chunk))
            if layers is None:
                return  # a larger chunk would not fit either
            choice = self.space.with_layers(start, layers)
            wider = (replace(choice, loss_chunk=size) for size in chunks)
            yield self.weigh(next(filter(self.fits, wider)))

    def _fewest(self, choice: Choice) -> int | None:
        """Return the fewest checkpointed blocks that fit; every further one frees memory."""
        low, high = (kept.layers for kept in self.space.ends(choice))
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
