"""What a user calls a thing to use: a run, an adapter over a base, a model; read and opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from os.path import realpath
from pathlib import Path
from typing import Any

from edgetune.adapters import LoadedAdapter, base_of, is_adapter, load_adapter
from edgetune.backend import Session
from edgetune.data import load_tokenizer
from edgetune.errors import ModelError, NothingFitsError, UsageError
from edgetune.memory.serving import adapter_bytes
from edgetune.methods import Method
from edgetune.model import LocalModel, open_model
from edgetune.planning import Plan
from edgetune.runs import RunFolder
from edgetune.settings.spec import values
from edgetune.units import precise_bytes
from edgetune.workflows.opened import Opened
from edgetune.workflows.opening import open_adapted, open_planned, open_session
from edgetune.workflows.over import Over
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.several import serving_of, with_room

_UNTRAINED: dict[str, Any] = {"method": "lora", "rank": 1, "layers": 1}
"""The smallest adapter, for a session of which the base alone is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What was named, read but for the base's weights; ``plan`` is a run's."""

    name: str
    model: LocalModel
    adapter: LoadedAdapter | None = None
    plan: Plan | None = None
    prompt_cut: str = ""
    labels: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know of it."""
        if self.adapter is None or not self.adapter.unused:
            return ()
        count = self.adapter.unused
        return (f"{self.name}: {count} tensors for images are left out; text does not reach them.",)


def read_reference(name: str, over: Over) -> Reference:
    """Return what a name stands for: a run's folder, an adapter's, or a model.

    Raises:
        UsageError: if it is a folder of nothing that is known, a run that has not finished, or
            an adapter that does not say over which model.
        ModelError: if the model or the adapter is missing or damaged.
    """
    path = _path(name)
    if (path / "plan.yaml").is_file():
        finished = RunFolder.open(path).finished_adapter()
        folder, plan, model = open_planned(path)
        adapter = load_adapter(finished, model.shape)
        found = Reference(name=name, model=model, adapter=adapter, plan=plan)
        return _as_trained(found, folder)
    if is_adapter(path):
        model = _base(path, over)
        adapter = load_adapter(path, model.shape)
        return _as_trained(Reference(name=name, model=model, adapter=adapter), _run_around(path))
    try:
        return Reference(name=name, model=open_model(name))
    except ModelError as error:
        if path.is_dir() and not (path / "config.json").is_file():
            raise UsageError(
                f"{name} is neither a run's folder (it has no plan.yaml) nor an adapter's "
                f"(adapter_config.json) nor a model's: {error}"
            ) from error
        if path.exists():
            raise
        near, is_path = _near(path), path.parent != Path() and path.parent.is_dir()
        if near or is_path:  # then no model was meant, and a hub's cache says nothing
            raise UsageError(f"There is no run, no adapter and no model {name}.{near}") from error
        kind = ModelError if "/" in name else UsageError
        raise kind(f"There is no run and no adapter {name}. As a model: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted(Reference):
    """A reference that has an adapter."""

    adapter: LoadedAdapter


def read_adapted(name: str, over: Over) -> Adapted:
    """Return a run or an adapter.

    Raises:
        UsageError: if it is a model; else as :func:`read_reference`.
    """
    return read_each_adapted((name,), over)[0]


def read_each_adapted(names: Sequence[str], over: Over) -> list[Adapted]:
    """Return runs and adapters over one base; an adapter that does not say its base has the runs'.

    Raises:
        UsageError: if one is a model, or if bases differ; else as :func:`read_reference`.
    """
    found = _read_all(names, over)
    for item in found:
        if item.adapter is None:
            raise UsageError(f"{item.name} is a model. Give a run's folder or an adapter's.")
        _require_same_base(found[0], item)
    return [Adapted(**values(item)) for item in found]


def open_references(names: Sequence[str], over: Over | None = None) -> list[Opened]:
    """Return what was named, opened over one base model, which is loaded once.

    The session is planned as the first run among them was; without one, anew.

    Raises:
        UsageError: if a folder is given twice, or if base models differ or are not computed
            with in the same way; else as :func:`read_reference`.
        NothingFitsError: if nothing fits that is planned anew, or not all adapters together.
    """
    over = over or Over()
    _refuse_twice(names)
    found = _read_all(names, over)
    _require_together(found)
    own = _own(found)
    plan = next((item.plan for item in found if item.plan is not None), None)
    return _opened(found, own, plan or new_plan(found[own or 0], over))


@contextmanager
def opened_references(names: Sequence[str], over: Over | None = None) -> Iterator[list[Opened]]:
    """Yield what :func:`open_references` returns, and give its memory and its files back."""
    opened = open_references(names, over)
    with closing(opened[0].session):
        yield opened


def _require_together(found: Sequence[Reference]) -> None:
    planned = [item for item in found if item.plan is not None]
    for other in found[1:]:
        _require_same_base(found[0], other)
    for other in planned[1:]:
        _require_same_numbers(planned[0], other)


def _own(found: Sequence[Reference]) -> int | None:
    """Return which adapter is the session's own: the first run's, else the first; None: there is none."""
    runs_first = sorted(range(len(found)), key=lambda number: found[number].plan is None)
    return next((number for number in runs_first if found[number].adapter is not None), None)


def _opened(found: list[Reference], own: int | None, plan: Plan) -> list[Opened]:
    """Open a session with one adapter of its own and hold the others beside it; empty ``found``.

    What was read of an adapter is let go of when the session has it.
    """
    methods = [item.adapter.method for item in found if item.adapter is not None]
    of_run = any(item.plan is not None for item in found)
    plan, attached = _with_room(plan, methods, of_run=of_run)
    model = found[0].model
    mine = None if own is None else found[own].adapter
    session = open_session(plan, model) if mine is None else open_adapted(plan, model, mine)
    del mine
    with ExitStack() as held:
        held.callback(session.close)
        opened = _shared_out(found, own, plan, session, attached)
        held.pop_all()
    return opened


def _shared_out(
    found: list[Reference], own: int | None, plan: Plan, session: Session, attached: int
) -> list[Opened]:
    """Return what shares a session, with all adapters but its own attached; empty ``found``."""
    model = found[0].model
    tokenizer = load_tokenizer(model.folder, model.shape.vocabulary)
    opened = []
    for number in range(len(found)):
        item = found.pop(0)
        one = Opened(
            name=item.name,
            plan=plan if item.plan is None else replace(item.plan, memory=plan.memory),
            model=model,
            tokenizer=tokenizer,
            session=session,
            prompt_cut=item.prompt_cut,
            labels=item.labels,
            label_names=item.label_names,
            notices=item.notices,
            attached=attached,
        )
        if item.adapter is None:
            one = one.base()
        else:
            one = replace(one, method=item.adapter.method)
            if number != own:
                name = realpath(item.name)  # no folder is named as the session's own adapter
                session.attach(name, item.adapter.method, item.adapter.tensors)
                one = replace(one, adapter=name)
        opened.append(one)
    return opened


def _with_room(plan: Plan, methods: Sequence[Method], *, of_run: bool) -> tuple[Plan, int]:
    """Return a plan with the memory of all adapters, and what those besides the first take.

    Raises:
        NothingFitsError: if they do not fit, with how many would.
    """
    if len(methods) < 2:
        return plan, 0  # made for the one
    serving = serving_of(plan, methods)
    own = adapter_bytes(plan.shape, plan.choice.method)
    return with_room(plan, serving, of_run=of_run), sum(serving.adapters) - own + serving.beyond


def _read_all(names: Sequence[str], over: Over) -> list[Reference]:
    """Read what was named; adapters that do not say their base have that of the runs."""
    runs = _refuse_unused(names, over)
    known = {name: read_reference(name, over) for name in runs}
    if runs and over.model is None:
        over = replace(over, model=known[runs[0]].model.ref)
    return [known.get(name) or read_reference(name, over) for name in names]


def _refuse_unused(names: Sequence[str], over: Over) -> list[str]:
    """Return the runs among names, which say themselves what ``over`` says of others."""
    runs = [name for name in names if is_run(name)]
    if runs and (over.device != "auto" or over.memory is not None):
        raise UsageError(
            f"{runs[0]} is a run, which is used with the device and the memory of its plan. "
            "Leave out --device and --memory, or give the adapter in it."
        )
    if runs and len(runs) == len(names) and over.model is not None:
        raise UsageError(f"{runs[0]} is a run and says its model itself. Leave out --model.")
    return runs


def is_run(name: str) -> bool:
    """Return whether a name is that of a run's folder."""
    return (_path(name) / "plan.yaml").is_file()


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # no such user
        raise UsageError(f"{name} cannot be looked at: {error}") from error


def _base(path: Path, over: Over) -> LocalModel:
    """Return the model of an adapter: the one that was given, else the one that it names."""
    if over.model is not None:
        return open_model(over.model)
    named = base_of(path)
    if named is None:
        raise UsageError(f"{path} is an adapter that does not say over which model. Give --model.")
    try:
        return open_model(named)
    except ModelError as error:
        raise ModelError(
            f"{path} is an adapter over {named}, which cannot be opened: {error} Say where that "
            "model is: --model REF."
        ) from error


def _run_around(adapter: Path) -> RunFolder | None:
    """Return the run in whose folder an adapter lies, if it lies in one."""
    whole = adapter.absolute()
    around = (place for place in whole.parents[:2] if (place / "plan.yaml").is_file())
    return next((RunFolder(place) for place in around), None)


def _as_trained(found: Reference, folder: RunFolder | None) -> Reference:
    """Return a reference with what the run's receipt says of how it was trained."""
    if folder is None:
        return found
    labels, names = folder.labels()
    return replace(found, prompt_cut=folder.prompt_cut(), labels=labels, label_names=names)


def new_plan(item: Reference, over: Over) -> Plan:
    """Return a plan for what has none.

    Raises:
        NothingFitsError: if it does not fit; what it is cannot be changed, more memory alone helps.
    """
    settings = dict(_UNTRAINED)
    if item.adapter is not None:
        method = item.adapter.method
        settings = values(method) | {"method": method.kind}
    request = PlanRequest(
        model=item.model.ref,
        device=over.device,
        memory=over.memory,
        choice={**settings, "micro_batch": 1},
    )
    try:
        planned = plan_for(request)
    except NothingFitsError as error:
        if error.needed is None:
            raise
        raise NothingFitsError(_too_large(item, over, error.needed), error.needed) from error
    if not planned.here:
        raise UsageError(
            f"--device {over.device} is another machine's profile, to plan for. Use a device that "
            "is here: auto, cpu, cuda or mlx."
        )
    return planned.plan


def _too_large(item: Reference, over: Over, needed: int) -> str:
    takes = f"{item.name} takes at least {precise_bytes(needed)} to be used"
    if over.memory is None:
        return f"{takes}, and the device has less for it. Close other programs, or take a smaller model."
    return (
        f"{takes}, and --memory allows {precise_bytes(over.memory)}. Let more be used: "
        f"--memory {-(-needed // 10**6)}MB."
    )


def _refuse_twice(names: Sequence[str]) -> None:
    places = [realpath(name) for name in names]
    twice = next((name for i, name in enumerate(names) if places[i] in places[:i]), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice. Once is enough.")


def _require_same_base(first: Reference, other: Reference) -> None:
    if first.model.fingerprint != other.model.fingerprint:
        raise UsageError(
            f"{other.name} is over {other.model.ref}, {first.name} over {first.model.ref}: "
            "only what is over the same base model can be used together."
        )


def _require_same_numbers(first: Reference, other: Reference) -> None:
    assert first.plan is not None
    assert other.plan is not None
    for name in ("quantization", "compute_dtype"):
        one, another = getattr(first.plan.choice, name), getattr(other.plan.choice, name)
        if one != another:
            raise UsageError(
                f"{other.name} was trained with {name} {another}, {first.name} with {one}: "
                "together one of them would not be the model that was trained. "
                "Use them one at a time."
            )


def _near(path: Path) -> str:
    """Return a question for the folder beside it that may have been meant, or nothing."""
    from difflib import get_close_matches

    with suppress(OSError):
        beside = [each.name for each in path.parent.iterdir() if each.is_dir()]
        for name in get_close_matches(path.name, beside, 1):
            return f" Did you mean {path.parent / name}?"
    return ""
