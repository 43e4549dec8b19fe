"""From what the user asked for to a plan that knows the model, the machine and the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune.device import Device, read_device
from edgetune.errors import ModelError, UsageError
from edgetune.files import is_utf8
from edgetune.model import ModelSource, resolve
from edgetune.objectives import objective_of
from edgetune.planning import DataFacts, Plan, make_plan
from edgetune.planning.plan import mean_document
from edgetune.planning.sharing import sharing_for
from edgetune.schedule import schedule_of
from edgetune.settings.spec import Training, values
from edgetune.speed import Measurements, Rates, TimeModel, Work, rates_of, run_estimate
from edgetune.workflows.after import AFTER, After
from edgetune.workflows.measured import measured, measured_once
from edgetune.workflows.rank_plans import on_shared_host, own_memory, shared
from edgetune.workflows.unread import INSTEAD, refuse_unevaluated, refuse_unread
from edgetune.world import Place

if TYPE_CHECKING:
    from edgetune.data import Dataset, Report, Tokenizer
    from edgetune.workflows.candidates import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What the user asked for. ``choice`` and ``training`` hold the knobs that they fixed."""

    model: str
    data: Path | None = None
    device: str = "auto"
    memory: int | None = None
    choice: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    measure: bool = False
    """Measure a device of this machine first, where that was not done yet."""
    run: bool = False
    """Whether a run follows: a device that cannot be used is refused then."""
    fixed: tuple[str, ...] = ()
    """Of the knobs, those that a plan or an adapter fixed and not the user."""

    named: frozenset[str] = frozenset()
    """Of the knobs, those that the user names now; what nothing reads of them is refused."""

    @property
    def given(self) -> tuple[str, ...]:
        """The knobs that the user fixed."""
        return tuple(sorted({*self.choice, *self.training} - {*self.fixed}))

    after: After = AFTER
    """What is done when the run is trained."""
    place: Place | None = None
    """Which rank of how many this process is; None: it is alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPlan:
    """A plan, and the rows that it was made for, fitted to its context.

    ``here`` is whether it is for this machine.
    """

    plan: Plan
    source: ModelSource
    here: bool
    dataset: Dataset | None = None
    tokenizer: Tokenizer | None = None
    candidates: tuple[Candidate, ...] = ()
    """Methods that are raced before the run, with their plans."""


def plan_for(
    request: PlanRequest,
    report: Report | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> PreparedPlan:
    """Return the plan for a request; the data is read if there is any, telling ``report``.

    ``say`` is told of work that takes a while.

    Raises:
        EdgetuneError: if the model, the data or the device cannot be had, or nothing fits.
    """
    searches = request.training.get("search")
    if searches is not None and "learning_rate" in request.given:
        raise UsageError(
            f"--search {searches} races with rates of its own, and --learning-rate fixes one. Leave "
            "one out."
        )
    if searches is not None and request.place is not None:
        won = "--learning-rate" if searches == "lr" else "--method"
        raise UsageError(
            f"--search {searches} races in one process, and this is one of several. Search first, "
            f"and give the run of several the {won} that won."
        )
    refuse_unread(request.named, request.choice, request.training)
    source = resolve(request.model)
    device = on_shared_host(read_device(request.device), request.place)
    if request.run and device.fault is not None:
        raise UsageError(f"{device.fault}\nOr give another --device.")
    ref = lasting_ref(source)
    memory = own_memory(request.memory, request.place, device)
    ranks = 1 if request.place is None else request.place.world
    if request.data is None:
        found = _found(request, device, say)
        plan = make_plan(
            device, ref, source.shape,
            fixed=request.choice, training=request.training, memory=memory,
            measured=found, ranks=ranks,
        )  # fmt: skip
        plan = _with_findings(plan, request, source, device)
        return PreparedPlan(plan=shared(plan, request.place), source=source, here=device.here)
    training = lasting_training(request.training)
    sharing = sharing_for(source.shape, request.choice, training)
    if sharing is not None:
        training["share_prompts"] = sharing.value
    tokenizer, dataset = read_rows(source, request.data, Training(**training), report)
    refuse_unevaluated(request.named, training, len(dataset.validation))
    found = _found(request, device, say)  # only now: bad data is told at once
    rows = _Rows(request.data, source, device, found, tokenizer, dataset)
    asked = replace(request, training=training)
    if searches != "method":
        return rows.planned(asked)
    from edgetune.workflows.candidates import of_usual, with_candidates

    return with_candidates(rows.planned(of_usual(asked)), asked, rows.planned)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that were read, for plans of any method on one model and device."""

    path: Path
    source: ModelSource
    device: Device
    found: Measurements | None
    tokenizer: Tokenizer
    dataset: Dataset

    def planned(self, request: PlanRequest) -> PreparedPlan:
        """Return the plan of a request over these rows."""
        from edgetune.workflows.job import with_judging, work_of

        source, device, dataset = self.source, self.device, self.dataset
        lengths = dataset.lengths
        plan = make_plan(
            device, lasting_ref(source), source.shape,
            fixed=request.choice, training=request.training,
            memory=own_memory(request.memory, request.place, device), measured=self.found,
            ranks=1 if request.place is None else request.place.world,
            facts=DataFacts(
                path=_lasting_path(self.path),
                rows=len(dataset.train),
                longest=int(lengths.max()),
                tokens=int(lengths.sum()),
                long_rows=dataset.long_rows,
                validation=len(dataset.validation),
            ),
        )  # fmt: skip
        fitted = dataset.fit(plan.choice.context)
        plan = _with_findings(_searching(plan, fitted), request, source, device)
        work = with_judging(work_of(plan, fitted), request.after, plan, fitted, self.tokenizer)
        plan = timed(_packed(plan, fitted, work), fitted, work, rates_of(device, self.found))
        return PreparedPlan(
            plan=shared(plan, request.place),
            source=source,
            here=device.here,
            tokenizer=self.tokenizer,
            dataset=fitted,
        )


def _with_findings(plan: Plan, request: PlanRequest, source: ModelSource, device: Device) -> Plan:
    """Return a plan that says which model was taken for a name, what cannot be used, what was given."""
    taken = () if source.taken_as is None else (source.taken_as,)
    fault = () if device.fault is None else (f"Nothing runs here yet: {device.fault}",)
    reasons = (*fault, *taken, *map(str, device.passed_over), *plan.reasons)
    return replace(plan, reasons=reasons, given=request.given)


def _found(request: PlanRequest, device: Device, say: Callable[[str], None]) -> Measurements | None:
    return measured_once(request.device, say) if request.measure else measured(device)


def _searching(plan: Plan, dataset: Dataset) -> Plan:
    """Return a plan that says how many rates are raced first, if any.

    Raises:
        UsageError: if the run is too short for races, or nothing judges them.
    """
    if plan.training.search != "lr":
        return plan
    from edgetune.workflows.job import race_lengths, work_of

    if not len(dataset.validation):
        raise UsageError(
            "--search lr judges rates on validation rows, and there are none. Keep some with "
            "--validation or --validation-data, or give a --learning-rate."
        )
    found = race_lengths(work_of(plan, dataset))
    because = (
        f"--search lr: before the run up to {found.races} learning rates around this one are raced "
        f"for {found.steps} steps each; validation loss and drift on a neutral text decide"
    )
    return replace(plan, reasons=(*plan.reasons, because))


def _packed(plan: Plan, dataset: Dataset, work: Work) -> Plan:
    """Return a plan that says how many steps packing saves, if any."""
    rows = plan.choice.micro_batch * plan.choice.accumulation
    alone = schedule_of(plan.training, ceil(len(dataset.train) / rows)).steps
    if work.steps >= alone:
        return plan
    filled = sum(each.count * each.rows for each in work.epoch)
    because = (
        f"{work.steps} steps instead of {alone}: packing puts the {len(dataset.train)} rows of an "
        f"epoch into {filled} of {plan.choice.context} tokens (--no-packing leaves them apart)"
    )
    return replace(plan, reasons=(*plan.reasons, because))


def timed(plan: Plan, dataset: Dataset, work: Work, rates: Rates) -> Plan:
    """Return a plan whose time is that of its own rows: they can be shorter than the context."""
    if not rates.known:
        return plan
    documents = mean_document(plan.data, plan.training)
    times = TimeModel(plan.shape, plan.choice.method, rates, plan.objective, documents=documents)
    run = run_estimate(times, plan.choice, work)
    epochs = work.steps / work.steps_per_epoch
    time = replace(
        plan.time,
        seconds_per_step=run.steps / work.steps,
        tokens_per_second=epochs * dataset.train.token_count / run.steps,
        run=run,
    )
    return replace(plan, time=time)


def lasting_ref(source: ModelSource) -> str:
    """Return how a model is called from any working directory: a folder by its whole path."""
    named = source.profile is not None or source.hub_id is not None or source.in_store
    if named or source.folder is None:
        return source.ref
    return str(source.folder.absolute())


def planned_model(plain: Mapping[str, Any], file: Path) -> str:
    """Return the model that the content of a plan file is for.

    Raises:
        UsageError: if it does not say.
    """
    try:
        return str(plain["model"]["ref"])
    except (KeyError, TypeError):
        raise UsageError(
            f"The plan file {file} does not say which model it is for. Make it again with "
            "`edgetune plan --output FILE`."
        ) from None


def lasting_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a training so that they mean the same in any working directory."""
    lasting = dict(settings)
    if lasting.get("validation_data") is not None:
        lasting["validation_data"] = _lasting_path(Path(lasting["validation_data"]))
    return lasting


def _lasting_path(path: Path) -> str:
    try:
        whole = path.expanduser().absolute()
    except RuntimeError as error:  # no such user
        raise UsageError(f"{path} cannot be looked at: {error}") from error
    if not is_utf8(whole):
        raise UsageError(f"{str(whole)!a} is not UTF-8, so a plan cannot name it. Rename it.")
    return str(whole)


def read_rows(
    source: ModelSource,
    data: Path,
    training: Training,
    report: Report | None = None,
    *,
    by_name: bool = True,
) -> tuple[Tokenizer, Dataset]:
    """Return the model's tokenizer and the rows of a file, not fitted to a context yet.

    In a folder, ``by_name`` lets the names of files say which are for validation or tests.
    """
    from edgetune.data import load_tokenizer, parse_fields, read_dataset

    if source.folder is None:
        raise ModelError(
            f"The tokenizer of {source.ref} is needed to count the tokens of {data}, and it is "
            f"not on this machine. Get the model with `edgetune fetch {source.hub_id}`, or give its "
            "folder: --model FOLDER. A plan alone can do without --data."
        )
    objective = objective_of(training)
    tokenizer = load_tokenizer(source.folder, source.shape.vocabulary)
    dataset = read_dataset(
        data,
        tokenizer,
        loss_on=training.loss_on,
        validation=training.validation,
        validation_data=Path(training.validation_data) if training.validation_data else None,
        by_name=by_name,
        fields=parse_fields(training.fields) if training.fields else None,
        kind=None if objective is None else objective.rows,
        label_names=training.label_names,
        share_prompts=bool(training.share_prompts),
        seed=training.seed,
        long_rows=training.long_rows,
        report=report,
    )
    return tokenizer, dataset


def replanned(plan: Plan, request: PlanRequest) -> PlanRequest:
    """Return a request that fixes everything a plan file says, with ``request``'s own knobs on top."""
    method = plan.choice.method
    settings = values(plan.choice) | values(method) | {"method": method.kind}
    training = values(plan.training)
    if "epochs" in request.training:
        training["steps"] = None
    given = {*(plan.given or ()), *request.choice, *request.training}
    for name, (other, value) in INSTEAD.items():
        for old, new in ((settings, request.choice), (training, request.training)):
            if name in new and other in old and other not in new:
                old[other] = value
                given.discard(other)
    return replace(
        request,
        model=plan.model.ref,
        choice={**settings, **request.choice},
        training={**training, **request.training},
        fixed=tuple(sorted({*settings, *training} - given)),
    )
