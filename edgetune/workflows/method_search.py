"""``--search method``: methods raced on the same rows before a run; the winner is the run's.

Each candidate (:mod:`edgetune.workflows.candidates`) is trained for a tenth of its steps, at what
stands for its usual rate, in a session of its own. Races that ended are kept beside the run's folder
until it is there, so that the same command goes on with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.backend import DeviceOutOfMemoryError
from edgetune.errors import OutOfMemoryError
from edgetune.files import sha256_json, write_json
from edgetune.model import LocalModel, open_model
from edgetune.racing import Race, best_method, lengths, why_method
from edgetune.runs import RunFolder, plan_hash
from edgetune.settings.spec import to_plain
from edgetune.workflows.candidates import METHOD, Candidate, race_length
from edgetune.workflows.job import Job
from edgetune.workflows.opening import open_session
from edgetune.workflows.races import Judges, Racer, judges_of
from edgetune.workflows.searching import RECORD, read_record

if TYPE_CHECKING:
    from edgetune.workflows.planning import PreparedPlan


def chosen(
    prepared: PreparedPlan, output: Path, say: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False, *, pause: bool = False, strict: bool = False,
) -> tuple[PreparedPlan, dict[str, Any] | None]:  # fmt: skip
    """Race the candidates of a plan; return the winner's plan, and what is written of the races.

    A plan without candidates is returned as it is. ``output`` is the folder that the run will have.

    Raises:
        StoppedError: if ``stop`` said so; races that ended are kept.
        OSError: if what is kept cannot be written.
    """
    if not prepared.candidates:
        return prepared, None
    plans = {one.kind: _own(one) for one in prepared.candidates}
    usual = prepared.plan.choice.method.kind
    model, file = open_model(prepared.plan.model.ref), kept_at(output)
    first = _job(plans[next(iter(plans))], model)
    key = sha256_json(
        {"data": first.facts.data, **{k: plan_hash(x.plan) for k, x in plans.items()}}
    )
    raced = _kept(file, key, say)
    judges, length = judges_of(_job(prepared, model), len(plans)), race_length(prepared)
    for kind, own in plans.items():
        if any(one.method == kind for one in raced):
            continue
        race = _raced(_job(own, model), Race(rate=own.plan.training.learning_rate, method=kind),
                      judges, stop, pause=pause, strict=strict)  # fmt: skip
        raced.append(race)
        record = {"version": 1, "key": key, "races": [to_plain(one) for one in raced]}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record)
        say(f"Raced {kind}: {_figures(race)}")
    best, why = best_method(raced, usual), why_method(raced, usual)
    winner = plans[usual if best is None else best.method]
    plan = replace(winner.plan, reasons=(*winner.plan.reasons, why))
    say(f"Chosen: {why}")
    found = {"version": 1, "steps": length.steps, "chosen": plan.choice.method.kind, "because": why,
             "races": [to_plain(one) for one in raced]}  # fmt: skip
    return replace(winner, plan=plan), found


def keep(record: Mapping[str, Any] | None, folder: RunFolder) -> None:
    """Write what the races came to into the folder of the run that is there now."""
    if record is not None:
        folder.write(RECORD, record)
        folder.note("method chosen", str(record["because"]))
        kept_at(folder.path).unlink(missing_ok=True)


def kept_at(output: Path) -> Path:
    """Return where races are kept before the run's folder is there."""
    return output.with_name(f"{output.name}.{RECORD}")


def _raced(
    job: Job, tried: Race, judges: Judges, stop: Callable[[], bool], *, pause: bool, strict: bool
) -> Race:
    """Return what a method came to in a session of its own; out of memory, others go on."""
    rows = max(len(batch.tokens) for batch in judges.validation)
    micro_batch = job.plan.choice.micro_batch
    try:
        with closing(open_session(job.plan, job.model)) as session:
            racer = Racer(
                job, session, stop, judges, pause, strict, micro_batch if micro_batch < rows else 0
            )
            schedule = job.facts.schedule
            race = racer.race(tried, lengths(schedule.shortest, METHOD, most=schedule.steps))
            while True:
                try:
                    next(race)
                except StopIteration as ended:
                    found: Race = ended.value
                    return found
    except (DeviceOutOfMemoryError, OutOfMemoryError) as error:
        return replace(tried, because=f"out of memory: {error}")


def _own(candidate: Candidate) -> PreparedPlan:
    assert candidate.prepared is not None
    return candidate.prepared


def _job(prepared: PreparedPlan, model: LocalModel) -> Job:
    assert prepared.dataset is not None
    plan = replace(prepared.plan, training=replace(prepared.plan.training, search=None))
    return Job.of(plan, prepared.dataset, model)


def _figures(race: Race) -> str:
    if not race.is_whole:
        return race.because
    return f"validation loss {race.loss:.4f}, neutral perplexity {race.perplexity:,.1f}"


def _kept(file: Path, key: str, say: Callable[[str], None]) -> list[Race]:
    """Return the races that ended before, of the same plans over the same rows."""
    found = read_record(file)
    if found.damage:
        say(found.damage)
    return list(found.races) if found.plain.get("key") == key else []
