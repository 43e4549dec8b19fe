"""THE training loop, written once, over the backend protocol. It yields events and prints nothing.

Whoever consumes the events acts between them: when :class:`SaveDue` is yielded the session
stands exactly where the event says, and the loop goes on when the next event is asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from edgetune.backend import (
    DEFAULT_ADAPTER,
    DeviceOutOfMemoryError,
    EvalResult,
    Session,
    StepResult,
)
from edgetune.data.batch import MicroBatch
from edgetune.errors import DiskError, DivergedError, OutOfMemoryError, StoppedError
from edgetune.events import Evaluated, Event, Recovered, RunState, SaveDue, Stepped
from edgetune.settings.spec import Training

R = TypeVar("R")


class StepData(Protocol):
    """The micro-batches of one optimizer step; counts are over the whole world."""

    @property
    def micro_batches(self) -> tuple[MicroBatch, ...]: ...
    @property
    def loss_tokens(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def epoch(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When what happens, in steps, and the learning rate of each step."""

    steps: int
    eval_every: int
    save_every: int
    warmup: int
    learning_rate: float

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
    )


def train(
    session: Session,
    steps: Callable[[int], StepData],
    evaluation: Callable[[], Iterable[MicroBatch]],
    schedule: Schedule,
    start: RunState | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train from ``start`` to the end of the schedule, yielding what happens.

    ``steps`` gives the data of a step by its number, ``evaluation`` the validation rows, which
    may be none; the base alone is evaluated before the first step. ``stop`` is asked after every
    step. The state is offered for saving before the first step and, however the loop ends, after
    the last whole one.

    Raises:
        StoppedError: if ``stop`` said so.
        OutOfMemoryError: if not even one row at a time fits.
        DivergedError: if a loss is no longer finite.
    """
    now = start or RunState()
    if now.step == 0:
        # a place that cannot be written is found before any work is done
        yield SaveDue(state=now)
        now = yield from _baseline(session, evaluation(), now)
    while now.step < schedule.steps:
        try:
            now = yield from _stepped(session, steps(now.step), schedule, now)
            last = now.step == schedule.steps
            if last or now.step % schedule.eval_every == 0:
                now = yield from _evaluated(session, evaluation(), now)
        except (OutOfMemoryError, DivergedError, DiskError):
            yield SaveDue(state=now)
            raise
        stopping = stop() and not last
        if last or now.is_best or stopping or now.step % schedule.save_every == 0:
            yield SaveDue(state=now)
        if stopping:
            raise StoppedError(f"Stopped after step {now.step} of {schedule.steps}.")


def _stepped(
    session: Session, data: StepData, schedule: Schedule, now: RunState
) -> Generator[Event, None, RunState]:
    """Take one step."""
    begun = time.perf_counter()
    rate = schedule.rate(now.step)
    work = partial(session.step, loss_tokens=data.loss_tokens, learning_rate=rate)
    step = now.step + 1
    try:
        result, now = yield from _fitted(work, data.micro_batches, now, step)
    except DivergedError as error:
        raise DivergedError(
            f"Step {step} gave {error}. The state after step {now.step} is kept; "
            "a lower --learning-rate usually helps."
        ) from None
    now = replace(now, step=step)
    yield _report(session, data, result, step, rate, time.perf_counter() - begun)
    return now


def _baseline(
    session: Session, batches: Iterable[MicroBatch], now: RunState
) -> Generator[Event, None, RunState]:
    """Evaluate the base alone on the validation rows, if there are any: what is to be beaten."""
    total, now = yield from _summed(session, batches, now, adapter=None)
    if total.loss_tokens == 0:
        return now
    loss = total.loss_sum / total.loss_tokens
    if not math.isfinite(loss):
        raise DivergedError(
            f"The validation loss of the base model is {loss} before anything is learned: its "
            "numbers overflow. --compute-dtype float32 helps if another one is used."
        )
    now = replace(now, base_loss=loss)
    yield _evaluation(total, now)
    return now


def _evaluated(
    session: Session, batches: Iterable[MicroBatch], now: RunState
) -> Generator[Event, None, RunState]:
    """Evaluate the validation rows, if there are any."""
    total, now = yield from _summed(session, batches, now, adapter=DEFAULT_ADAPTER)
    if total.loss_tokens == 0:
        return now
    loss = total.loss_sum / total.loss_tokens
    if not math.isfinite(loss):
        raise DivergedError(
            f"The validation loss after step {now.step} is {loss}. The state is kept, and so are "
            "the checkpoints before it; a lower --learning-rate usually helps."
        )
    if now.loss_to_beat is None or loss < now.loss_to_beat:
        now = replace(now, best_step=now.step, best_loss=loss)
    yield _evaluation(total, now)
    return now


def _summed(
    session: Session, batches: Iterable[MicroBatch], now: RunState, *, adapter: str | None
) -> Generator[Event, None, tuple[EvalResult, RunState]]:
    """Return the losses over micro-batches with an adapter, or of the base alone."""
    total, work = EvalResult(), partial(session.evaluate, adapter=adapter)
    for batch in batches:
        part, now = yield from _fitted(work, (batch,), now, now.step)
        total += part
    return total, now


def _evaluation(total: EvalResult, now: RunState) -> Evaluated:
    loss = total.loss_sum / total.loss_tokens
    return Evaluated(
        step=now.step,
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        accuracy=total.correct / total.loss_tokens,
        rows=total.rows,
        best=now.is_best,
    )


def _fitted(
    work: Callable[[Sequence[MicroBatch]], R],
    batches: Sequence[MicroBatch],
    now: RunState,
    step: int,
) -> Generator[Event, None, tuple[R, RunState]]:
    """Do work on micro-batches, again with fewer rows at once for as long as memory runs out."""
    while True:
        try:
            return work(split(batches, now.rows)), now
        except DeviceOutOfMemoryError as error:
            now = replace(now, rows=_fewer(batches, now.rows, error))
            yield Recovered(step=step, rows=now.rows, because=str(error))


def split(batches: Sequence[MicroBatch], rows: int) -> tuple[MicroBatch, ...]:
    """Return the same rows in micro-batches of at most ``rows``; 0 leaves them as they are."""
    if rows == 0:
        return tuple(batches)
    return tuple(
        batch.rows(start, start + rows)
        for batch in batches
        for start in range(0, len(batch.tokens), rows)
    )


def _fewer(batches: Sequence[MicroBatch], rows: int, error: DeviceOutOfMemoryError) -> int:
    largest = max(len(batch.tokens) for batch in batches)
    smaller = min(rows or largest, largest) // 2
    if smaller == 0:
        raise OutOfMemoryError(
            f"One row of {batches[0].tokens.shape[1]} tokens does not fit: {error}. The state is "
            "saved: close other programs and --resume, with more --memory if that was given, or "
            "plan again with a smaller --memory or --context."
        ) from None
    return smaller


def _report(
    session: Session, data: StepData, result: StepResult, step: int, rate: float, seconds: float
) -> Stepped:
    return Stepped(
        step=step,
        loss=result.loss,
        tokens=data.tokens,
        loss_tokens=data.loss_tokens,
        seconds=seconds,
        learning_rate=rate,
        grad_norm=result.grad_norm,
        peak_bytes=session.memory().peak_bytes,
        epoch=data.epoch,
    )
