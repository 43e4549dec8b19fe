"""``--search lr``: learning rates raced from the same start before a run; the winner is the run's.

Every race (:mod:`edgetune.workflows.races`) is undone: the run itself is
what it would be with ``--learning-rate``, bit for bit. ``search.json`` keeps what each race came to, so
that one that was stopped goes on with the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from edgetune.backend import Session
from edgetune.errors import UsageError
from edgetune.events import Event, RateChosen, RateRaced, RunState
from edgetune.files import load_json
from edgetune.planning import Plan, plan_from_json, read_plan_file
from edgetune.racing import Lengths, Race, because, following, lengths, winner
from edgetune.runs import RunFolder, checkpoint_name, load_checkpoint, plan_hash
from edgetune.runs.checkpoint import save_checkpoint
from edgetune.settings.parse import checked
from edgetune.settings.spec import to_plain
from edgetune.workflows.job import Job
from edgetune.workflows.races import Racer, judges_of

RECORD: Final = "search.json"
START: Final = "search"
"""The folder that holds the start while rates are raced."""
LARGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was kept of races: the races, and all that the file says; ``damage`` if it says nothing."""

    plain: Mapping[str, Any] = field(default_factory=dict)
    races: tuple[Race, ...] = ()
    damage: str = ""


def read_record(file: Path) -> Record:
    """Return what a file keeps of races; nothing where there is none, or it is damaged."""
    try:
        found = checked(dict, load_json(file, LARGEST), "it")
        checked(float | None, found.get("default"), "default")
        return Record(plain=found, races=checked(tuple[Race, ...], found.get("races", []), "races"))
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, UsageError) as error:
        because = str(error).rstrip(".")
        return Record(
            damage=f"The races kept in {file} cannot be read: {because}. All are raced again."
        )


def is_pending(folder: RunFolder, plan: Plan, start: RunState) -> bool:
    """Tell whether learning rates are to be raced before a run goes on."""
    searches = plan.training.search is not None and start.step == 0
    return searches and read_record(folder.path / RECORD).plain.get("chosen") is None


def damage(folder: RunFolder, plan: Plan, start: RunState) -> list[str]:
    """Return what is wrong with the record of races that are still pending, if anything."""
    if not is_pending(folder, plan, start):
        return []
    found = read_record(folder.path / RECORD).damage
    return [found] if found else []


def start_of_races(folder: RunFolder) -> Path:
    """Return where a run's start is kept while learning rates are raced: a checkpoint."""
    return folder.path / START / checkpoint_name(0)


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

    def search(self) -> Generator[Event, None, Job]:
        """Race, and return the job with the winner's rate; the session stands at its start again.

        Raises:
            StoppedError: if ``stop`` said so; what was raced is kept.
            OutOfMemoryError: if a single row does not fit.
            OSError: if the folder cannot be written.
        """
        schedule, record = self.job.facts.schedule, read_record(self.folder.path / RECORD)
        length = lengths(schedule.shortest, most=schedule.steps)
        default = float(record.plain.get("default") or self.job.plan.training.learning_rate)
        raced = list(record.races)
        racer = Racer(
            self.job, self.session, self.stop, judges_of(self.job, length.races),
            self.pause, self.strict, self.rows,
        )  # fmt: skip
        start, moved = self._start(), False
        while (rate := following(raced, default, length.races)) is not None:
            if moved:
                self._restore(start)
            race = yield from racer.race(Race(rate=rate), length)
            moved, self.rows = True, racer.rows
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
