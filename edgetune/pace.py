"""How long each rank computes in a step, and what that says about its share of the next ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean

from edgetune.events import RankFigures, RanksSeen, RunState, Shared
from edgetune.shares import Sharing, parts_of, weights_of
from edgetune.world import World


class Pace:
    """The seconds of this rank's own work, step by step: waiting for others is none."""

    def __init__(self, world: World, sharing: Sharing) -> None:
        """Look at the clock that the world keeps of its exchanges."""
        self.sharing = sharing
        self._world = world
        self._steps: list[float] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step that succeeds."""
        begun, waited = time.perf_counter(), self._world.waited
        yield
        self._steps.append(time.perf_counter() - begun - (self._world.waited - waited))

    def seen(self, state: RunState, peak_bytes: int) -> RanksSeen:
        """Ask all ranks for the mean since the last time, and the peak; all ask together."""
        mean, size = fmean(self._steps) if self._steps else 0.0, self._world.size
        self._steps.clear()
        weights = state.shares or (1,) * self.sharing.parts
        ranks = tuple(
            RankFigures(
                share=sum(weights[part] for part in parts_of(rank, size, len(weights)))
                / sum(weights),
                seconds=seconds,
                peak_bytes=int(peak),
            )
            for rank, (seconds, peak) in enumerate(self._world.gather((mean, peak_bytes)))
        )
        return RanksSeen(step=state.step, ranks=ranks)

    def shared(self, state: RunState, positions: int, seconds: float) -> Shared:
        """Share steps from now on by what every rank took for its part of the latest one.

        ``positions`` are those that this rank computed, ``seconds`` those of the whole step.
        """
        every = self._world.gather((positions, self._steps[-1] if self._steps else 0.0))
        speeds = tuple(count / own if count and own > 0 else 0.0 for count, own in every)
        exchange = max(0.0, seconds - max(own for _, own in every))
        total, gain = sum(count for count, _ in every), 0.0
        if min(speeds) > 0:
            gain = total / max(speeds) / (total / sum(speeds) + exchange)
        weights = weights_of(speeds, self.sharing.parts)
        self.sharing.deal(weights)
        return Shared(state=replace(state, shares=weights), speeds=speeds, gain=gain)
