"""What the steps of runs took, kept so that later plans of such runs are nearer to the truth."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Protocol

from edgetune.device import read_device
from edgetune.events import Stepped
from edgetune.pilot import StepData
from edgetune.planning import Plan
from edgetune.planning.plan import mean_document
from edgetune.speed import Experience, TimeModel, rates_of, rectangles, save_measurements, way
from edgetune.workflows.measured import measured

NEAR: Final = 1.3
"""Times that a pilot's step may take more or less than predicted before it counts."""

ENOUGH, MOST = 2, 32
"""Steps of a run that tell more than its pilot, which pays for what is done once, and the number of its
last ones that are looked at."""


class Steps(Protocol):
    """The steps of a run."""

    def step(self, index: int) -> StepData: ...


@dataclass(slots=True)
class Timed:
    """The last steps of a run and the seconds that they took."""

    plan: Plan
    steps: Steps
    _last: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=MOST))

    def saw(self, step: Stepped) -> None:
        """Remember a step."""
        self._last.append((step.step, step.seconds))

    def learn(self) -> Experience | None:
        """Keep what the steps took, once there are enough; return it."""
        if len(self._last) < ENOUGH:
            return None
        return learn(self.plan, [(shapes_of(self.steps.step(n - 1)), s) for n, s in self._last])


def shapes_of(step: StepData) -> list[tuple[int, int]]:
    """Return (rows, width) of a step's micro-batches that are learned; others are timed with them."""
    return [batch.tokens.shape for batch in step.micro_batches if not batch.is_mismatched]


def learn(
    plan: Plan, steps: Iterable[tuple[Sequence[tuple[int, int]], float]], near: float = 1.0
) -> Experience | None:
    """Keep the share of the predicted seconds that steps took, and return it.

    ``steps`` are the shapes of each one's micro-batches and its seconds; their median counts. None
    if this machine was not measured, or they took within ``near`` times what is predicted by now.
    """
    device = read_device(plan.device.kind)
    found = measured(device) if device.name == plan.device.name else None
    if found is None or plan.time.basis != "measured":
        return None
    choice = plan.choice
    documents = mean_document(plan.data, plan.training)
    times = TimeModel(
        plan.shape, choice.method, rates_of(device, found), plan.objective, documents=documents
    )
    share = median(seconds / times.step_of(choice, rectangles(shapes)) for shapes, seconds in steps)
    if share <= 0 or 1 / near <= share <= near:
        return None
    mine = Experience(
        way=way(choice.quantization, choice.compute_dtype),
        method=choice.method.kind,
        hidden_size=plan.shape.hidden_size,
        share=share * times.share(choice),
    )
    with suppress(OSError):
        save_measurements(found.with_experience(mine))  # without a cache it is measured again
    return mine
