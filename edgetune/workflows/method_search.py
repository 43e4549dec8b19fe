"""``--search method``: methods raced on the same rows before a run; the winner is the run's.

A method takes part if its plan fits on the same base and context, if its file is small enough, and
while all races together take no more than their share of the run. Each is trained for a tenth of
its steps, at what stands for its usual rate, in a session of its own. Races that ended are kept beside the
run's folder until it is there, so that the same command goes on with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgetune.backend import DeviceOutOfMemoryError
from edgetune.choice import Choice
from edgetune.errors import NothingFitsError, OutOfMemoryError, UsageError
from edgetune.files import load_json, sha256_json, write_json
from edgetune.methods import METHODS, known_settings
from edgetune.model import LocalModel, open_model
from edgetune.planning import Plan
from edgetune.planning.problem import METHOD as USUAL
from edgetune.racing import Lengths, Race, best_method, lengths, why_method
from edgetune.runs import RunFolder, plan_hash
from edgetune.settings.parse import from_plain
from edgetune.settings.spec import Training, knobs, to_plain
from edgetune.storage import FLOAT32_BYTES
from edgetune.workflows.job import RACE_SHARE, Job
from edgetune.workflows.opening import open_session
from edgetune.workflows.races import Judges, Racer, judges_of
from edgetune.workflows.searching import LARGEST, RECORD

if TYPE_CHECKING:
    from edgetune.workflows.planning import PlanRequest, PreparedPlan

METHOD: Final = "method"

SHARE: Final = 0.6
"""Of the run's time, what all races may take together, with a base loaded for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A method with its plan; without one it does not take part, ``because`` of something."""

    kind: str
    prepared: PreparedPlan | None = None
    because: str = ""
    seconds: float = 0.0
    """Of its race, as planned; 0 where that is not known."""


def of_usual(asked: PlanRequest) -> PlanRequest:
    """Return the request of the usual method, without settings that only methods raced with it have."""
    usual = str(asked.choice.get("method", USUAL))
    names = Training(**asked.training).search_methods
    others = {name for kind in names if kind in METHODS for name in known_settings(kind)}
    foreign = others - {*known_settings(usual), *(item.name for item in knobs(Choice))}
    kept = {name: value for name, value in asked.choice.items() if name not in foreign}
    return replace(asked, choice=kept)


def with_candidates(
    usual: PreparedPlan, asked: PlanRequest, plan: Callable[[PlanRequest], PreparedPlan]
) -> PreparedPlan:
    """Return the plan of the usual method, with the methods that are raced before it.

    ``plan`` makes the plan of a request over the same rows.

    Raises:
        UsageError: if a method is fixed or unknown, the run too short, or fewer than two take part.
    """
    if "method" in asked.given:
        raise UsageError(
            "--search method chooses the method, and --method fixes it. Leave one out."
        )
    names = usual.plan.training.search_methods
    if strange := [name for name in names if name not in METHODS]:
        known = ", ".join(METHODS)
        raise UsageError(f"--search-methods: there is no method {strange[0]}. There are: {known}.")
    _refuse_without_judges(usual)
    length = _length(usual)
    found = list(_within_time(usual, _candidates(usual, asked, plan, names), length))
    taking_part = [one for one in found if one.prepared is not None]
    if len(taking_part) < 2:
        others = "; ".join(f"{one.kind}: {one.because}" for one in found if one.because)
        raise UsageError(
            "--search method needs two methods to choose from, and "
            f"{', '.join(one.kind for one in taking_part) or 'none'} is left of {', '.join(names)}. {others}."
        )
    raced = (
        f"--search method: before the run {', '.join(one.kind for one in taking_part)} are raced for "
        f"{length.steps} steps each; validation loss and drift on a neutral text decide"
    )
    left_out = (
        f"--search method: {one.kind} is not raced: {one.because}" for one in found if one.because
    )
    without = (
        f"--search method: {kind} is raced without {', '.join(flags)}, which it does not have"
        for kind, flags in ((one.kind, _foreign(one.kind, asked)) for one in taking_part)
        if flags
    )
    searched = replace(usual.plan, reasons=(*usual.plan.reasons, raced, *without, *left_out))
    run = searched.time.run
    if run is not None:
        run = replace(run, search=sum(one.seconds for one in taking_part))
        searched = replace(searched, time=replace(searched.time, run=run))
    return replace(usual, plan=searched, candidates=tuple(taking_part))


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
    raced = _kept(file, key)
    judges, length = judges_of(_job(prepared, model), len(plans)), _length(prepared)
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
            race = racer.race(tried, lengths(job.facts.schedule.steps, METHOD))
            while True:
                try:
                    next(race)
                except StopIteration as ended:
                    found: Race = ended.value
                    return found
    except (DeviceOutOfMemoryError, OutOfMemoryError) as error:
        return replace(tried, because=f"out of memory: {error}")


def _candidates(
    usual: PreparedPlan, asked: PlanRequest, plan: Callable[[PlanRequest], PreparedPlan],
    names: Sequence[str],
) -> Iterator[Candidate]:  # fmt: skip
    """Yield the methods that are to be raced, with their plans on the same base and context."""
    same = {name: getattr(usual.plan.choice, name) for name in ("quantization", "context")}
    shared = {item.name for item in knobs(Choice)}
    limit = usual.plan.training.search_size
    training = {**asked.training, "search": None}
    if "learning_rate" not in asked.given:  # a plan's own rate is that of its method
        training.pop("learning_rate", None)
    for kind in names:
        own = {*known_settings(kind), *shared}
        settings = {name: x for name, x in asked.choice.items() if name in own & {*asked.given}}
        wanted = replace(
            asked,
            choice={**settings, **same, "method": kind},
            training=training,
            fixed=(*asked.fixed, *same, "method"),
        )
        try:
            prepared = plan(wanted)
        except (NothingFitsError, UsageError) as error:
            yield Candidate(kind=kind, because=str(error).splitlines()[0].rstrip("."))
            continue
        size = _file_bytes(prepared.plan)
        if limit is not None and size > limit * 1e6:
            because = f"its adapter takes {size / 1e6:,.1f} MB, --search-size is {limit:g}"
            yield Candidate(kind=kind, because=because)
            continue
        yield Candidate(kind=kind, prepared=prepared)


def _foreign(kind: str, asked: PlanRequest) -> list[str]:
    """Return the flags that were given and are settings of other methods than this."""
    own = {*known_settings(kind), *(item.name for item in knobs(Choice))}
    names = [name for name in asked.given if name in asked.choice and name not in own]
    return [f"--{name.replace('_', '-')}" for name in names]


def _within_time(
    usual: PreparedPlan, candidates: Iterator[Candidate], length: Lengths
) -> Iterator[Candidate]:
    """Yield the candidates; those for whose races there is no time have no plan any more."""
    run, spent, taken = usual.plan.time.run, 0.0, 0
    for one in candidates:
        if one.prepared is None:
            yield one
            continue
        seconds = _race_seconds(one.prepared.plan, length)
        too_long = run is not None and spent + seconds > SHARE * (run.total - run.search)
        if taken == length.races or too_long:
            because = f"races take at most {SHARE:.0%} of the run's time"
            yield Candidate(kind=one.kind, because=because)
            continue
        spent, taken = spent + seconds, taken + 1
        yield replace(one, seconds=seconds)


def _race_seconds(plan: Plan, length: Lengths) -> float:
    """Return the planned seconds of a method's race: loading the base, steps, evaluations."""
    run = plan.time.run
    if run is None:
        return 0.0
    judged = RACE_SHARE * (run.steps + run.evaluations) / length.races
    return run.loading + length.steps * plan.time.seconds_per_step + judged


def _file_bytes(plan: Plan) -> int:
    """Return the bytes of a method's adapter file, its constants included."""
    saved = plan.choice.method.on_disk()
    return FLOAT32_BYTES * sum(tensor.size for tensor in saved.tensors(plan.shape))


def _length(prepared: PreparedPlan) -> Lengths:
    """Return how long races are, for a run of this plan.

    Raises:
        UsageError: if it is too short for them.
    """
    from edgetune.workflows.job import work_of

    assert prepared.dataset is not None
    plan = replace(prepared.plan, training=replace(prepared.plan.training, search=None))
    return lengths(work_of(plan, prepared.dataset).steps, METHOD)


def _refuse_without_judges(prepared: PreparedPlan) -> None:
    assert prepared.dataset is not None
    if not len(prepared.dataset.validation):
        raise UsageError(
            "--search method judges methods on validation rows, and there are none. Keep some with "
            "--validation or --validation-data, or give a --method."
        )


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


def _kept(file: Path, key: str) -> list[Race]:
    """Return the races that ended before, of the same plans over the same rows."""
    try:
        found = load_json(file, LARGEST)
    except (OSError, ValueError):
        return []
    if not isinstance(found, dict) or found.get("key") != key:
        return []
    return [from_plain(Race, one, "race") for one in found.get("races", ())]
