"""``--search lr``: learning rates raced from the same start before a run; the winner is the run's.

A race is a short run of its own (warm-up and cosine included), which is undone: the run itself is
what it would be with ``--learning-rate``, bit for bit. ``search.json`` keeps what each race came to, so
that one that was stopped goes on with the next.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, exp, isfinite
from pathlib import Path
from typing import Any, Final

from edgetune.backend import DeviceOutOfMemoryError, EvalResult, Session
from edgetune.data import MicroBatch, Tokenizer, load_tokenizer
from edgetune.data.batch import split
from edgetune.errors import DivergedError, OutOfMemoryError, StoppedError
from edgetune.events import Event, RateChosen, RateRaced, Recovered, RunState, UnderPressure
from edgetune.files import load_json
from edgetune.loop import train
from edgetune.neutral import WINDOW, neutral_batches
from edgetune.planning import Plan, plan_from_json, read_plan_file
from edgetune.racing import Lengths, Race, because, following, lengths, winner
from edgetune.runs import RunFolder, load_checkpoint, plan_hash
from edgetune.runs.checkpoint import save_checkpoint
from edgetune.schedule import Schedule
from edgetune.settings.parse import from_plain
from edgetune.settings.spec import to_plain
from edgetune.workflows.job import Job, race_positions, work_of
from edgetune.workflows.throttle import yield_to_machine

RECORD: Final = "search.json"
START: Final = "search"
"""The folder that holds the start while rates are raced."""
LARGEST: Final = 1 << 20
DRIFT_SHARE: Final = 0.4
"""Of what is evaluated after a race, the neutral text."""


def is_pending(folder: RunFolder, plan: Plan) -> bool:
    """Tell whether learning rates are to be raced before a run goes on."""
    return plan.training.search is not None and _record(folder).get("chosen") is None


@dataclass(slots=True)
class RateSearch:
    """Races learning rates in an opened session; ``rows`` is how many fit at once, 0: as planned."""

    job: Job
    folder: RunFolder
    session: Session
    stop: Callable[[], bool]
    pause: bool = False
    strict: bool = False
    rows: int = 0
    _validation: list[MicroBatch] = field(default_factory=list)
    _neutral: list[MicroBatch] = field(default_factory=list)

    def search(self) -> Generator[Event, None, Job]:
        """Race, and return the job with the winner's rate; the session stands at its start again.

        Raises:
            StoppedError: if ``stop`` said so; what was raced is kept.
            OutOfMemoryError: if a single row does not fit.
            OSError: if the folder cannot be written.
        """
        length = lengths(self.job.facts.schedule.steps)
        record = _record(self.folder)
        default = float(record.get("default") or self.job.plan.training.learning_rate)
        raced = [from_plain(Race, one, "race") for one in record.get("races", ())]
        self.judged_by(length)
        start, moved = self._start(), False
        while (rate := following(raced, default, length.races)) is not None:
            if moved:
                self._restore(start)
            race = yield from self._race(rate, length)
            moved = True
            raced.append(race)
            self._write(default, length, raced, None, "")
            self.folder.note("rate raced", f"{rate:g}", loss=race.loss, perplexity=race.perplexity)
            yield RateRaced(race=race, steps=length.steps)
        if moved:
            self._restore(start)
        best, why = winner(raced, default), because(raced, default)
        chosen = default if best is None else best.rate
        job = self._settled(chosen, why)
        self._write(default, length, raced, chosen, why)
        shutil.rmtree(start.parent, ignore_errors=True)
        self.folder.note("learning rate chosen", why, learning_rate=chosen)
        yield RateChosen(rate=chosen, because=why)
        return job

    def _race(self, rate: float, length: Lengths) -> Generator[Event, None, Race]:
        """Train at what stands for a rate and judge it; the caller undoes it."""
        begun, tried = time.monotonic(), Race(rate=rate, raced_at=length.raced_at(rate))
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
            loss, neutral = self._loss(self._validation), self._loss(self._neutral)
        except StoppedError:
            said = f"Stopped while learning rate {rate:g} was raced; races that ended are kept."
            raise StoppedError(said) from None
        except DivergedError as error:
            return replace(tried, seconds=time.monotonic() - begun, because=str(error))
        tried = replace(tried, seconds=time.monotonic() - begun)
        if not isfinite(loss) or not isfinite(neutral):
            return replace(tried, because="the loss is not finite")
        return replace(tried, loss=loss, perplexity=exp(min(neutral, 700.0)))

    def judged_by(self, length: Lengths) -> tuple[MicroBatch, ...]:
        """Choose what every race is judged by, for a small share of the run's time; return all."""
        plan, model = self.job.plan, self.job.model
        room = race_positions(work_of(plan, self.job.dataset), length.races)
        tokenizer = load_tokenizer(model.folder, model.shape.vocabulary)
        drift = int(DRIFT_SHARE * room)
        self._neutral = list(_within(self._neutral_batches(tokenizer, drift), drift))
        left = room - sum(batch.tokens.size for batch in self._neutral)
        total = sum(batch.tokens.size for batch in self.job.evaluation())
        # An objective over answers needs all of them: some are scored against others.
        apart = 1 if plan.objective is not None else max(1, ceil(total / max(1, left)))
        found = enumerate(self.job.evaluation())
        self._validation = [batch for number, batch in found if number % apart == 0]
        return (*self._neutral, *self._validation)

    def _neutral_batches(self, tokenizer: Tokenizer, room: int) -> Sequence[MicroBatch]:
        """Return the neutral text in micro-batches of which at least one has ``room``."""
        choice = self.job.plan.choice
        rows = max(1, min(choice.micro_batch, room // min(WINDOW, choice.context)))
        return neutral_batches(tokenizer, choice.context, rows)

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

    def _start(self) -> Path:
        """Return a checkpoint of the start."""
        folder = self.folder.path / START
        folder.mkdir(exist_ok=True)
        return save_checkpoint(folder, self.session, self.job.plan, RunState(), self.job.facts)

    def _restore(self, start: Path) -> None:
        found = load_checkpoint(start, self.job.plan)
        self.session.restore(found.adapter, found.optimizer)

    def _settled(self, rate: float, why: str) -> Job:
        """Return the job with a rate, after writing it into the plan of the folder."""
        job = self.job
        written = plan_from_json(read_plan_file(self.folder.plan), job.plan.shape)
        _with_rate(written, rate, why).save(self.folder.plan)
        plan = _with_rate(job.plan, rate, why)
        schedule = replace(job.facts.schedule, learning_rate=rate)
        facts = replace(job.facts, plan=plan_hash(plan), schedule=schedule)
        return replace(job, plan=plan, facts=facts)

    def _write(
        self, default: float, length: Lengths, raced: Iterable[Race], chosen: float | None, why: str
    ) -> None:
        record = {
            "version": 1,
            "default": default,
            "steps": length.steps,
            "races": [to_plain(one) for one in raced],
            "chosen": chosen,
            "because": why,
        }
        self.folder.write(RECORD, record)


def _with_rate(plan: Plan, rate: float, why: str) -> Plan:
    """Return a plan with another learning rate, and why."""
    reasons = [one for one in plan.reasons if not one.startswith(("learning rate ", "--search lr"))]
    training = replace(plan.training, learning_rate=rate)
    return replace(plan, training=training, reasons=(*reasons, why))


def _within(batches: Iterable[MicroBatch], room: int) -> Iterator[MicroBatch]:
    """Yield as many micro-batches as have no more than ``room`` tokens and padding, but one."""
    for number, batch in enumerate(batches):
        room -= batch.tokens.size
        if number and room < 0:
            return
        yield batch


def _record(folder: RunFolder) -> dict[str, Any]:
    """Return what is known of the races of a run; nothing where that cannot be read."""
    try:
        found = load_json(folder.path / RECORD, LARGEST)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
