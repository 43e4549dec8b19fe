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

from edgetune.backend import DeviceOutOfMemoryError, EvalResult, Session, StepResult
from edgetune.data.batch import MicroBatch
from edgetune.errors import DivergedError, OutOfMemoryError, StoppedError
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
class Stepped:
    """An optimizer step was taken. ``seconds`` is its time, ``loss`` its mean over loss tokens."""

    step: int
    loss: float
    tokens: int
    loss_tokens: int
    seconds: float
    learning_rate: float
    grad_norm: float
    peak_bytes: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The validation rows were evaluated after ``step`` steps."""

    step: int
    loss: float
    perplexity: float
    accuracy: float
    rows: int
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveDue:
    """The state should be saved now."""

    state: RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Memory ran out; the same micro-batches are computed again, ``rows`` rows at once."""

    step: int
    rows: int
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderPressure:
    """The machine came under pressure; the next step waits if ``paused``."""

    step: int
    because: str
    paused: bool


Event = Stepped | Evaluated | SaveDue | Recovered | UnderPressure


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands, besides its tensors: what a resumed run needs to go on alike.

    ``best_step`` is the step with the lowest validation loss, None before the first evaluation.
    ``rows`` is the largest micro-batch known to fit, 0 while none has failed.
    """

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    rows: int = 0

    @property
    def is_best(self) -> bool:
        """Whether the validation loss is the lowest so far."""
        return self.best_step == self.step


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
    may be none. ``stop`` is asked after every step. The state is offered for saving before the
    first step and, however the loop ends, after the last whole one.

    Raises:
        StoppedError: if ``stop`` said so.
        OutOfMemoryError: if not even one row at a time fits.
        DivergedError: if a loss is no longer finite.
    """
    now = start or RunState()
    if now.step == 0:
        # a place that cannot be written is found before any work is done
        yield SaveDue(state=now)
    while now.step < schedule.steps:
        try:
            now = yield from _stepped(session, steps(now.step), schedule, now)
            last = now.step == schedule.steps
            if last or now.step % schedule.eval_every == 0:
                now = yield from _evaluated(session, evaluation(), now)
        except (OutOfMemoryError, DivergedError):
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


def _evaluated(
    session: Session, batches: Iterable[MicroBatch], now: RunState
) -> Generator[Event, None, RunState]:
    """Evaluate the validation rows, if there are any."""
    total = EvalResult()
    for batch in batches:
        part, now = yield from _fitted(session.evaluate, (batch,), now, now.step)
        total += part
    if total.loss_tokens == 0:
        return now
    loss = total.loss_sum / total.loss_tokens
    if not math.isfinite(loss):
        raise DivergedError(
            f"The validation loss after step {now.step} is {loss}. The state is kept, and so are "
            "the checkpoints before it; a lower --learning-rate usually helps."
        )
    if now.best_loss is None or loss < now.best_loss:
        now = replace(now, best_step=now.step, best_loss=loss)
    yield Evaluated(
        step=now.step,
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        accuracy=total.correct / total.loss_tokens,
        rows=total.rows,
        best=now.is_best,
    )
    return now


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
