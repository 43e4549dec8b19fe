"""A race: a short run of its own (warm-up and cosine included), judged by two figures.

They are the loss on validation rows, and that on the neutral text, which tells how far the model
drifted from its base.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, isfinite
from typing import Final

from edgetune.backend import DeviceOutOfMemoryError, EvalResult, Session
from edgetune.data import MicroBatch, Tokenizer, load_tokenizer
from edgetune.data.batch import split
from edgetune.errors import DivergedError, OutOfMemoryError, StoppedError
from edgetune.events import Event, Recovered, RunState, UnderPressure
from edgetune.loop import train
from edgetune.neutral import WINDOW, neutral_batches
from edgetune.racing import Lengths, Race
from edgetune.schedule import Schedule
from edgetune.workflows.job import Job, race_positions, work_of
from edgetune.workflows.throttle import yield_to_machine

DRIFT_SHARE: Final = 0.4
"""Of what is evaluated after a race, the neutral text."""


@dataclass(frozen=True, slots=True)
class Judges:
    """What all races of a search are judged by."""

    validation: Sequence[MicroBatch]
    neutral: Sequence[MicroBatch]


@dataclass(slots=True)
class Racer:
    """Races in an opened session; ``rows`` is how many fit at once, 0: as planned."""

    job: Job
    session: Session
    stop: Callable[[], bool]
    judges: Judges
    pause: bool = False
    strict: bool = False
    rows: int = 0

    def race(self, tried: Race, length: Lengths) -> Generator[Event, None, Race]:
        """Train at what stands for a rate and judge it; the caller undoes it.

        Raises:
            StoppedError: if ``stop`` said so.
            OutOfMemoryError: if a single row does not fit.
        """
        begun, tried = time.monotonic(), replace(tried, raced_at=length.raced_at(tried.rate))
        schedule = self.job.facts.schedule
        short = Schedule(
            steps=length.steps,
            eval_every=length.steps,
            save_every=length.steps,
            warmup=ceil(schedule.warmup * length.steps / schedule.steps),
            learning_rate=tried.raced_at,
        )
        # A base loss keeps the loop from looking at the last rows once more: they are judged below.
        start = RunState(rows=self.rows, base_loss=0.0)
        steps = train(
            self.session, self.job.batches.step, lambda: (), short, start, self.stop,
            strict=self.strict,
        )  # fmt: skip
        try:
            for event in yield_to_machine(steps, pause=self.pause, stop=self.stop):
                if isinstance(event, Recovered):
                    self.rows = event.rows
                if isinstance(event, Recovered | UnderPressure):
                    yield event
            loss, neutral = self._loss(self.judges.validation), self._loss(self.judges.neutral)
        except StoppedError:
            what = tried.method or f"learning rate {tried.rate:g}"
            said = f"Stopped while {what} was raced; races that ended are kept."
            raise StoppedError(said) from None
        except DivergedError as error:
            return replace(tried, seconds=time.monotonic() - begun, because=str(error))
        tried = replace(tried, seconds=time.monotonic() - begun)
        if not isfinite(loss) or not isfinite(neutral):
            return replace(tried, because="the loss is not finite")
        return replace(tried, loss=loss, perplexity=exp(min(neutral, 700.0)))

    def _loss(self, batches: Sequence[MicroBatch]) -> float:
        """Return the mean loss of the adapter on micro-batches, with fewer rows where need be."""
        while True:
            total = EvalResult()
            try:
                for batch in batches:
                    total += self.session.evaluate(split((batch,), self.rows))
            except DeviceOutOfMemoryError as error:
                self.rows = (self.rows or self.job.plan.choice.micro_batch) // 2
                if self.rows == 0:
                    raise OutOfMemoryError(f"A single row cannot be evaluated: {error}.") from None
                continue
            found = total.settled()
            return found.loss_sum / found.loss_tokens


def judges_of(job: Job, races: int) -> Judges:
    """Choose what every race is judged by, for a small share of the run's time."""
    plan, model = job.plan, job.model
    room = race_positions(work_of(plan, job.dataset), races)
    tokenizer = load_tokenizer(model.folder, model.shape.vocabulary)
    drift = int(DRIFT_SHARE * room)
    neutral = list(_within(_neutral_batches(job, tokenizer, drift), drift))
    left = room - sum(batch.tokens.size for batch in neutral)
    total = sum(batch.tokens.size for batch in job.evaluation())
    # An objective over answers needs all of them: some are scored against others.
    apart = 1 if plan.objective is not None else max(1, ceil(total / max(1, left)))
    found = enumerate(job.evaluation())
    return Judges([batch for number, batch in found if number % apart == 0], neutral)


def _neutral_batches(job: Job, tokenizer: Tokenizer, room: int) -> Sequence[MicroBatch]:
    """Return the neutral text in micro-batches of which at least one has ``room``."""
    choice = job.plan.choice
    rows = max(1, min(choice.micro_batch, room // min(WINDOW, choice.context)))
    return neutral_batches(tokenizer, choice.context, rows)


def _within(batches: Iterable[MicroBatch], room: int) -> Iterator[MicroBatch]:
    """Yield as many micro-batches as have no more than ``room`` tokens and padding, but one."""
    for number, batch in enumerate(batches):
        room -= batch.tokens.size
        if number and room < 0:
            return
        yield batch
