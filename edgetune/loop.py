"""THE training loop, written once, over the backend protocol. It yields events and prints nothing.

Whoever consumes the events acts between them: when :class:`SaveDue` is yielded the session
stands exactly where the event says, and the loop goes on when the next event is asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import TypeVar

from edgetune.backend import (
    DEFAULT_ADAPTER,
    DeviceOutOfMemoryError,
    EvalResult,
    Session,
)
from edgetune.data.batch import MicroBatch, split
from edgetune.errors import (
    DiskError,
    DivergedError,
    LostRankError,
    OutOfMemoryError,
    StoppedError,
)
from edgetune.events import (
    EndedEarly,
    Evaluated,
    Event,
    Piloted,
    RanksSeen,
    Recovered,
    Rewound,
    RunState,
    SaveDue,
    Stepped,
    TrialSaveDue,
)
from edgetune.guard import REWINDS, is_stuck, ran_away
from edgetune.pace import Pace
from edgetune.pilot import QUICK, Pilot, StepData, positions
from edgetune.schedule import Schedule
from edgetune.shares import Sharing
from edgetune.together import evaluated
from edgetune.world import ALONE, World, anybody, most

R = TypeVar("R")


def train(
    session: Session,
    steps: Callable[[int], StepData],
    evaluation: Callable[[], Iterable[MicroBatch]],
    schedule: Schedule,
    start: RunState | None = None,
    stop: Callable[[], bool] = lambda: False,
    *,
    rewind: Callable[[int], RunState] | None = None,
    strict: bool = False,
    pilot: Pilot | None = None,
    world: World = ALONE,
    sharing: Sharing | None = None,
) -> Iterator[Event]:
    """Train from ``start`` to the end of the schedule, yielding what happens.

    ``steps`` gives the data of a step by its number, ``evaluation`` the validation rows, which
    may be none; the base alone is evaluated before the first step. Where the schedule has a patience,
    it ends with the evaluation that exhausts it. ``stop`` is asked after every
    step. The state is offered for saving before the first step, and again when it ends by ``stop``
    or by memory that runs out. ``rewind`` takes the session back to the checkpoint of a step, or
    to one before it if that was damaged, and returns its state; a loss that runs away goes back so, and on at half the learning rate.
    ``strict`` ends the run instead of changing the rate or the rows at once. A ``pilot`` is tried
    before anything is learned, and undone by ``rewind``. The ranks of a ``world`` each run this
    loop, with their shares of the data, and come to the same decisions; ``sharing`` says how
    large these are, equal where it is not given, and is told when the pilot decides otherwise.

    Raises:
        StoppedError: if ``stop`` said so, on any rank.
        LostRankError: if a rank ended, or does not answer.
        OutOfMemoryError: if not even one row at a time fits.
        DivergedError: if the loss runs away and nothing is left to try.
    """
    if sharing is None:
        sharing = Sharing(parts=world.size, by_speed=False, deal=lambda _: None)
    pace = Pace(world, sharing)
    loop = Loop(session, steps, evaluation, schedule, rewind, strict, world, pace)
    return loop.run(start or RunState(), stop, pilot)


@dataclass(slots=True)
class Loop:
    """One run's loop; ``now`` is where it stands."""

    session: Session
    steps: Callable[[int], StepData]
    evaluation: Callable[[], Iterable[MicroBatch]]
    schedule: Schedule
    rewind: Callable[[int], RunState] | None
    strict: bool
    world: World
    pace: Pace
    now: RunState = field(default_factory=RunState)

    def run(
        self, start: RunState, stop: Callable[[], bool], pilot: Pilot | None
    ) -> Iterator[Event]:
        """Yield what happens; see :func:`train`."""
        self.now = start
        if start.step == 0:
            # a place that cannot be written is found before any work is done
            yield SaveDue(state=start)
        if pilot is not None and self.rewind is not None and not self._ended:
            yield from self._pilot(pilot, self.rewind)
        if self.now.step == 0:
            yield from self._evaluate(None)
        while self.now.unevaluated or not self._ended:
            try:
                if not self.now.unevaluated:  # else the run was interrupted in the evaluation
                    yield from self._step()
                if self.now.unevaluated:
                    yield from self._evaluate(DEFAULT_ADAPTER)
                yield from self._judge()
                stopping = anybody(self.world, stop()) and not self._ended
                due = self._save_due() or stopping
                seen = self._seen() if due and self.world.size > 1 else None
            except DivergedError as error:
                yield from self._go_back(error)
                continue
            except (OutOfMemoryError, DiskError, LostRankError):
                yield SaveDue(state=self.now)
                raise
            if self.now.step < self.schedule.steps and self._ended:
                yield self._ended_early()
            if seen is not None:
                yield seen
            if due:
                yield SaveDue(state=self.now)
            if stopping:
                raise StoppedError(f"Stopped after step {self.now.step} of {self.schedule.steps}.")

    @property
    def _ended(self) -> bool:
        return self.schedule.is_over(self.now.step, self.now.patience)

    def _seen(self) -> RanksSeen:
        return self.pace.seen(self.now, self.session.memory().peak_bytes)

    def _ended_early(self) -> EndedEarly:
        now = self.now.patience
        assert now.lowest is not None
        return EndedEarly(step=self.now.step, evaluations=now.waited, lowest=now.lowest)

    def _pilot(
        self, pilot: Pilot, rewind: Callable[[int], RunState]
    ) -> Generator[Event, None, None]:
        """Take a step, evaluate and save; then everything is as it was, but for rows at once."""
        data, number = pilot.step, self.now.step + 1
        rate = self.schedule.rate(self.now.step) * self.now.guard.rate_factor
        work = partial(self.session.step, loss_tokens=data.terms, learning_rate=rate)
        seconds, rows = 0.0, self.now.rows
        with suppress(DivergedError):  # the run's own steps tell
            for _ in range(2):
                begun = time.perf_counter()
                with self.pace.step():
                    yield from self._fitted(work, data.micro_batches, number, self.world)
                seconds = most(self.world, time.perf_counter() - begun)
                if seconds > QUICK and self.now.rows == rows:
                    break
        yield from self._losses(pilot.evaluated, DEFAULT_ADAPTER)
        yield TrialSaveDue(state=self.now)
        before = self.now
        self.now = replace(rewind(before.step), rows=before.rows, shares=before.shares)
        if self.pace.sharing.by_speed and not self.now.shares:
            computed = positions(data.micro_batches) if seconds else 0
            shared = self.pace.shared(self.now, computed, seconds)
            self.now = shared.state
            yield shared
        memory, rows = self.session.memory(), self._most_rows(data.micro_batches)
        yield Piloted(
            step=self.now.step,
            peak_bytes=memory.peak_bytes,
            seconds=seconds,
            positions=positions(data.micro_batches),
            rows=rows,
        )
        over = memory.peak_bytes > memory.limit_bytes and rows > 1
        if anybody(self.world, over):
            allowed = f"{memory.peak_bytes:,} bytes at the peak, {memory.limit_bytes:,} are allowed"
            because = allowed if over else "another rank needs more memory than it may use"
            yield self._with_fewer_rows(data.micro_batches, number, because, self.world)

    def _step(self) -> Generator[Event, None, None]:
        """Take one step."""
        begun = time.perf_counter()
        data, number = self.steps(self.now.step), self.now.step + 1
        rate = self.schedule.rate(self.now.step) * self.now.guard.rate_factor
        work = partial(self.session.step, loss_tokens=data.terms, learning_rate=rate)
        try:
            with self.pace.step():
                result = yield from self._fitted(work, data.micro_batches, number, self.world)
        except DivergedError as error:
            raise DivergedError(f"Step {number} gave {error}") from None
        if is_stuck(result.loss, result.grad_norm):
            raise DivergedError(f"Step {number} gave loss {result.loss:.4g} and no gradient at all")
        self.now = replace(self.now, step=number, guard=self.now.guard.after(result.loss))
        due = self._ended or number % self.schedule.eval_every == 0
        self.now = replace(self.now, unevaluated=due)
        yield Stepped(
            step=number,
            loss=result.loss,
            tokens=data.tokens,
            loss_tokens=data.loss_tokens,
            seconds=time.perf_counter() - begun,
            learning_rate=rate,
            grad_norm=result.grad_norm,
            peak_bytes=self.session.memory().peak_bytes,
            epoch=data.epoch,
            metrics=result.metrics,
        )

    def _evaluate(self, adapter: str | None) -> Generator[Event, None, None]:
        """Evaluate the validation rows, if there are any, with an adapter or the base alone."""
        total = yield from self._losses(self.evaluation(), adapter)
        self.now = replace(self.now, unevaluated=False)
        if total.loss_tokens == 0:
            return
        loss, now = total.loss_sum / total.loss_tokens, self.now
        if not math.isfinite(loss):
            raise DivergedError(
                f"The validation loss after step {now.step} is {loss:.4g}"
                if now.step
                else f"The validation loss of the base model is {loss:.4g}: its numbers overflow. "
                "--compute-dtype float32 helps if another one is used."
            )
        if adapter is None:
            self.now = replace(now, base_loss=loss)
        else:
            self.now = now = replace(now, patience=now.patience.after(loss))
            if now.loss_to_beat is None or loss < now.loss_to_beat:
                guard = now.guard.proven(now.step, now.best_step)
                self.now = replace(now, best_step=now.step, best_loss=loss, guard=guard)
        yield Evaluated(
            step=now.step,
            loss=loss,
            perplexity=None if total.rewards else math.exp(min(loss, 700.0)),
            accuracy=total.correct / total.loss_tokens,
            rows=total.rows,
            best=self.now.is_best,
            metrics=total.metrics,
        )

    def _save_due(self) -> bool:
        """Tell whether a checkpoint is due, and remember it as one to go back to."""
        if self._ended or self.now.is_best:
            return True
        if self.now.step % self.schedule.save_every:
            return False
        self.now = replace(self.now, guard=self.now.guard.checkpointed(self.now.step))
        return True

    def _judge(self) -> Generator[Event, None, None]:
        """Ask the base about the rows of losses that are suspicious.

        Without validation rows nothing else says what the last step has done: its rows are
        looked at once more.

        Raises:
            DivergedError: if the model is worse on them than when training began.
        """
        guard, step = self.now.guard, self.now.step
        if self._ended and self.now.base_loss is None:
            loss = yield from self._loss_of(step - 1, DEFAULT_ADAPTER)
            if not math.isfinite(loss):
                raise DivergedError(f"The loss after step {step} is {loss:.4g}")
            guard, suspects = replace(guard, suspects=()).after(loss), [step - 1]
        elif guard.suspicious:
            suspects = list(range(step - len(guard.suspects), step))
        else:
            return
        if not guard.suspects:
            return
        base = 0.0
        for number in suspects:
            base += (yield from self._loss_of(number, None)) / len(suspects)
        assert guard.first is not None
        begun = guard.first - (yield from self._loss_of(0, None))
        if ran_away(guard.suspects, base, begun):
            raise DivergedError(
                f"The loss ran away: up to step {step} it is {fmean(guard.suspects):.4g}, "
                f"where the base model has {base:.4g}"
            )
        self.now = replace(self.now, guard=self.now.guard.cleared())

    def _go_back(self, error: DivergedError) -> Generator[Event, None, None]:
        """Take the run back to its good checkpoint, from which it goes on at half the rate.

        Raises:
            DivergedError: if it may not, cannot, or did so often enough.
        """
        now, guard = self.now, self.now.guard
        to = guard.target(now.step)
        if self.rewind is None or self.strict:
            reason = "The run ends here"
        elif now.step == to:
            reason = (
                "Nothing was learned since the checkpoint before it, so going back does not help"
            )
        elif guard.rewinds == REWINDS:
            reason = f"The learning rate was halved {REWINDS} times before"
        else:
            before = self.rewind(to)
            self.now = replace(
                before,
                base_loss=now.base_loss,
                rows=now.rows,
                shares=now.shares,
                guard=guard.rewound(before.step, before.guard),
            )
            rate = self.schedule.learning_rate * self.now.guard.rate_factor
            yield Rewound(step=now.step, to=before.step, because=str(error), learning_rate=rate)
            return
        raise DivergedError(
            f"{error}. {reason}. The checkpoint after step {to} is the last good one; a "
            "lower --learning-rate usually helps."
        ) from None

    def _loss_of(self, number: int, adapter: str | None) -> Generator[Event, None, float]:
        """Return the loss on the rows of a step, counted from 0."""
        data = self.steps(number)
        total = yield from self._losses(data.micro_batches, adapter)
        return total.loss_sum / data.terms

    def _losses(
        self, batches: Iterable[MicroBatch], adapter: str | None
    ) -> Generator[Event, None, EvalResult]:
        """Return the sums over micro-batches."""
        total, work = EvalResult(), partial(self.session.evaluate, adapter=adapter)
        for batch in batches:
            total += yield from self._fitted(work, (batch,), self.now.step, ALONE)
        return evaluated(self.world, total.settled())

    def _fitted(
        self,
        work: Callable[[Sequence[MicroBatch]], R],
        batches: Sequence[MicroBatch],
        step: int,
        world: World,
    ) -> Generator[Event, None, R]:
        """Do work on micro-batches, again with fewer rows at once for as long as memory runs out.

        ``world`` are the ranks on which it does so together.
        """
        while True:
            try:
                return work(split(batches, self.now.rows))
            except DeviceOutOfMemoryError as error:
                yield self._with_fewer_rows(batches, step, str(error), world)

    def _with_fewer_rows(
        self, batches: Sequence[MicroBatch], step: int, because: str, world: World
    ) -> Recovered:
        """Go on with half of the rows at once, on all ranks of a world.

        Raises:
            OutOfMemoryError: if that may not be, or a single row is too much.
        """
        if self.strict:
            raise OutOfMemoryError(
                f"Step {step} does not fit: {because}. The state is saved; resumed with "
                "--no-strict, the step is repeated with fewer rows at once."
            ) from None
        rows = int(most(world, self._most_rows(batches))) // 2
        if rows == 0:
            raise OutOfMemoryError(
                f"One row of {_width(batches)} tokens does not fit: {because}. The "
                "state is saved: close other programs and --resume, with more --memory if that "
                "was given, or plan again with a smaller --memory or --context."
            ) from None
        self.now = replace(self.now, rows=rows)
        return Recovered(step=step, rows=rows, because=because)

    def _most_rows(self, batches: Sequence[MicroBatch]) -> int:
        """Return how many rows of micro-batches are computed at once."""
        return max((len(batch.tokens) for batch in split(batches, self.now.rows)), default=0)


def _width(batches: Sequence[MicroBatch]) -> int:
    return max((batch.tokens.shape[1] for batch in batches), default=0)
