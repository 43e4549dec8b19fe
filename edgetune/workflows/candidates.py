"""Which methods are raced for ``--search method``, with a plan for each, and which are not and why.

A method takes part if its plan fits on the same base and context, if its file is small enough, and
while all races together take no more than their share of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Final

from edgetune.choice import Choice
from edgetune.errors import NothingFitsError, UsageError
from edgetune.methods import METHODS, known_settings
from edgetune.planning import Plan
from edgetune.planning.problem import METHOD as USUAL
from edgetune.racing import Lengths
from edgetune.settings.spec import Training, knobs, values
from edgetune.speed import Work
from edgetune.storage import FLOAT32_BYTES
from edgetune.workflows.job import RACE_SHARE, race_lengths, work_of

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
    asked, changed = _with_changes(asked, plan)
    if "method" in asked.given:
        raise UsageError(
            "--search method chooses the method, and --method fixes it. Leave one out."
        )
    names = usual.plan.training.search_methods
    if strange := [name for name in names if name not in METHODS]:
        known = ", ".join(METHODS)
        raise UsageError(f"--search-methods: there is no method {strange[0]}. There are: {known}.")
    _refuse_without_judges(usual)
    length = race_length(usual)
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
    with_them = (
        f"--search method: all are raced with {name.replace('_', ' ')} as the plan file has it"
        for name in changed
    )
    reasons = (*usual.plan.reasons, raced, *with_them, *without, *left_out)
    searched = replace(usual.plan, reasons=reasons)
    run = searched.time.run
    if run is not None:
        run = replace(run, search=sum(one.seconds for one in taking_part))
        searched = replace(searched, time=replace(searched.time, run=run))
    return replace(usual, plan=searched, candidates=tuple(taking_part))


def race_length(prepared: PreparedPlan) -> Lengths:
    """Return how long races are, for a run of this plan.

    Raises:
        UsageError: if it is too short for them.
    """
    return race_lengths(_work(prepared), METHOD)


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


def _with_changes(
    asked: PlanRequest, plan: Callable[[PlanRequest], PreparedPlan]
) -> tuple[PlanRequest, list[str]]:
    """Return a request in which what was changed in a plan file counts as given, and its names.

    Changed is what a plan file has otherwise than a plan that is made anew from what was given.

    Raises:
        UsageError: if method or learning rate were changed: each method is raced at its own.
    """
    fixed = {*asked.fixed}
    if not fixed & {*asked.choice}:
        return asked, []
    training = {**asked.training, "search": None}
    if "learning_rate" in fixed:
        training.pop("learning_rate", None)
    given = {name: x for name, x in asked.choice.items() if name not in fixed}
    anew = plan(
        replace(asked, choice=given, training=training, fixed=tuple(fixed - {*asked.choice}))
    )
    made, kind = anew.plan, anew.plan.choice.method.kind
    planned = {**values(made.choice), **values(made.choice.method), **values(made.training)}
    planned |= {"method": kind}
    has = {**asked.training, **asked.choice}
    changed = [x for x in sorted(fixed - {*training}) if x in planned and has.get(x) != planned[x]]
    for name in {"method", "learning_rate"} & {*changed}:
        raise UsageError(
            f"The plan file has {name} {has[name]} and was made with {planned[name]}. --search method "
            f"races each method at its own rate: put {planned[name]} back, or leave out the search."
        )
    return replace(asked, fixed=tuple(sorted(fixed - {*changed}))), changed


def _foreign(kind: str, asked: PlanRequest) -> list[str]:
    """Return the flags that were given and are settings of other methods than this."""
    own = {*known_settings(kind), *(item.name for item in knobs(Choice))}
    names = [name for name in asked.given if name in asked.choice and name not in own]
    return [f"--{name.replace('_', '-')}" for name in names]


def _within_time(
    usual: PreparedPlan, candidates: Iterator[Candidate], length: Lengths
) -> Iterator[Candidate]:
    """Yield the candidates; those for whose races there is no time have no plan any more."""
    spent, taken, limit = 0.0, 0, _time_limit(usual)
    for one in candidates:
        if one.prepared is None:
            yield one
            continue
        seconds = _race_seconds(one.prepared, length)
        if taken == length.races or spent + seconds > limit:
            because = f"races take at most {SHARE:.0%} of the run's time"
            yield Candidate(kind=one.kind, because=because)
            continue
        spent, taken = spent + seconds, taken + 1
        yield replace(one, seconds=seconds)


def _time_limit(usual: PreparedPlan) -> float:
    """Return the seconds that all races may take together, of those that the run takes in any case."""
    run = usual.plan.time.run
    if run is None:
        return inf
    whole = run.steps + run.evaluations + run.saves
    return SHARE * (run.total - run.search - (1 - _certain(usual)) * whole)


def _race_seconds(prepared: PreparedPlan, length: Lengths) -> float:
    """Return the planned seconds of a method's race: loading the base, steps, evaluations."""
    time = prepared.plan.time
    if time.run is None:
        return 0.0
    judged = (
        RACE_SHARE * _certain(prepared) * (time.run.steps + time.run.evaluations) / length.races
    )
    return time.run.loading + length.steps * time.seconds_per_step + judged


def _certain(prepared: PreparedPlan) -> float:
    """Return the share of a run's steps that are taken in any case: it may end early."""
    work = _work(prepared)
    return work.shortest / work.steps


def _file_bytes(plan: Plan) -> int:
    """Return the bytes of a method's adapter file, its constants included."""
    saved = plan.choice.method.on_disk()
    return FLOAT32_BYTES * sum(tensor.size for tensor in saved.tensors(plan.shape))


def _work(prepared: PreparedPlan) -> Work:
    assert prepared.dataset is not None
    plan = replace(prepared.plan, training=replace(prepared.plan.training, search=None))
    return work_of(plan, prepared.dataset)


def _refuse_without_judges(prepared: PreparedPlan) -> None:
    assert prepared.dataset is not None
    if not len(prepared.dataset.validation):
        raise UsageError(
            "--search method judges methods on validation rows, and there are none. Keep some with "
            "--validation or --validation-data, or give a --method."
        )
