"""THE training loop, written once, over the backend protocol. It yields events and prints nothing.

Whoever consumes the events acts between them: when :class:`SaveDue` is yielded the session
stands exactly where the event says, and the loop goes on when the next event is asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from edgetune.backend import DeviceOutOfMemoryError, EvalResult, Session, StepResult
from edgetune.data.batch import MicroBatch
from edgetune.errors import DivergedError, OutOfMemoryError, StoppedError
from edgetune.spec import Training


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
    """The state should be saved now; ``best``: its validation loss is the lowest so far."""

    state: Progress
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Memory ran out in a step, which is repeated with smaller micro-batches."""

    step: int
    rows: int
    because: str


Event = Stepped | Evaluated | SaveDue | Recovered


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, besides its tensors: what a resumed run needs to go on alike.

    ``rows`` is the largest micro-batch known to fit, 0 while none has failed.
    """

    step: int = 0
    best_loss: float | None = None
    rows: int = 0


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
            return self.learning_rate * (step + 1) / self.warmup
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
    start: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train from ``start`` to the end of the schedule, yielding what happens.

    ``steps`` gives the data of a step by its number, ``evaluation`` the validation rows, which
    may be none. ``stop`` is asked after every step. However the loop ends, the last good state
    has been offered for saving.

    Raises:
        StoppedError: if ``stop`` said so.
        OutOfMemoryError: if not even one row at a time fits.
        DivergedError: if the loss is no longer finite.
    """
    now = start or Progress()
    while now.step < schedule.steps:
        try:
            stepped, now = yield from _one_step(session, steps(now.step), schedule, now)
        except (OutOfMemoryError, DivergedError):
            yield SaveDue(state=now, best=False)
            raise
        yield stepped
        last, improved = now.step == schedule.steps, False
        if last or now.step % schedule.eval_every == 0:
            evaluated = _evaluated(session.evaluate(evaluation()), now)
            if evaluated is not None:
                yield evaluated
                improved = evaluated.best
                now = replace(now, best_loss=evaluated.loss) if improved else now
        stopping = stop() and not last
        if last or improved or stopping or now.step % schedule.save_every == 0:
            yield SaveDue(state=now, best=improved)
        if stopping:
            raise StoppedError(f"Stopped after step {now.step} of {schedule.steps}.")


def _one_step(
    session: Session, data: StepData, schedule: Schedule, now: Progress
) -> Generator[Event, None, tuple[Stepped, Progress]]:
    """Take the step, again with fewer rows at once for as long as memory runs out."""
    begun = time.perf_counter()
    rate = schedule.rate(now.step)
    while True:
        try:
            result = _step(session, data, now.rows, rate)
        except DeviceOutOfMemoryError as error:
            now = replace(now, rows=_fewer(data, now.rows, error))
            yield Recovered(step=now.step + 1, rows=now.rows, because=str(error))
        except DivergedError as error:
            raise DivergedError(
                f"Step {now.step + 1} gave {error}. The state after step {now.step} is kept; "
                "a lower --learning-rate usually helps."
            ) from None
        else:
            now = replace(now, step=now.step + 1)
            seconds = time.perf_counter() - begun
            return _stepped(session, rate, data, result, now.step, seconds), now


def _step(session: Session, data: StepData, rows: int, learning_rate: float) -> StepResult:
    batches = data.micro_batches if not rows else split(data.micro_batches, rows)
    return session.step(batches, loss_tokens=data.loss_tokens, learning_rate=learning_rate)


def split(batches: Sequence[MicroBatch], rows: int) -> tuple[MicroBatch, ...]:
    """Return the same rows in micro-batches of at most ``rows``."""
    return tuple(
        batch.rows(start, min(start + rows, len(batch.tokens)))
        for batch in batches
        for start in range(0, len(batch.tokens), rows)
    )


def _fewer(data: StepData, rows: int, error: DeviceOutOfMemoryError) -> int:
    largest = max(len(batch.tokens) for batch in data.micro_batches)
    smaller = min(rows or largest, largest) // 2
    if smaller == 0:
        raise OutOfMemoryError(
            f"One row of {data.micro_batches[0].tokens.shape[1]} tokens does not fit: {error}. "
            "Plan again with a smaller --memory, --context or --quantization nf4."
        ) from None
    return smaller


def _stepped(
    session: Session, rate: float, data: StepData, result: StepResult, step: int, seconds: float
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


def _evaluated(result: EvalResult, now: Progress) -> Evaluated | None:
    if result.loss_tokens == 0:
        return None
    loss = result.loss_sum / result.loss_tokens
    return Evaluated(
        step=now.step,
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        accuracy=result.correct / result.loss_tokens,
        rows=result.rows,
        best=now.best_loss is None or loss < now.best_loss,
    )
