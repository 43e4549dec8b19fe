"""When what happens in a run, and how fast it learns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgetune.patience import PatienceState
from edgetune.settings.spec import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When what happens, in steps, and the learning rate of each step.

    After ``patience`` evaluations without a lower validation loss it is over; 0 goes on to the end.
    """

    steps: int
    eval_every: int
    save_every: int
    warmup: int
    learning_rate: float
    patience: int = 0

    @property
    def shortest(self) -> int:
        """Steps that are taken in any case: where the loss never falls again, patience is out then.

        >>> Schedule(steps=300, eval_every=30, save_every=30, warmup=0, learning_rate=1.0, patience=3).shortest
        120
        """
        if not self.patience:
            return self.steps
        return min(self.steps, (1 + self.patience) * self.eval_every)

    def is_over(self, step: int, patience: PatienceState) -> bool:
        """Tell whether nothing is to be done after ``step`` steps."""
        return step >= self.steps or patience.is_out(self.patience)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0: linear warm-up, cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * ((step + 1) / self.warmup)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def schedule_of(training: Training, steps_per_epoch: int) -> Schedule:
    """Return the schedule that the settings ask for."""
    steps = training.steps
    if steps is None:
        steps = max(1, math.ceil(training.epochs * steps_per_epoch))
    eval_every = training.eval_every or max(1, math.ceil(steps / 10))
    return Schedule(
        steps=steps,
        eval_every=eval_every,
        save_every=training.save_every or eval_every,
        warmup=math.ceil(training.warmup * steps),
        learning_rate=training.learning_rate,
        patience=training.patience or 0,
    )
