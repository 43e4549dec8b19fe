"""A plan made real: the model and the backend that it names, opened."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgetune.adapters import LoadedAdapter
from edgetune.backend import Session, load_backend
from edgetune.device import found_again
from edgetune.errors import UsageError
from edgetune.model import LocalModel, open_model
from edgetune.planning import Plan, moved, plan_from_json, read_plan_file
from edgetune.runs import RunFolder
from edgetune.workflows.planning import planned_model
from edgetune.world import ALONE, World


def open_planned(path: Path) -> tuple[RunFolder, Plan, LocalModel]:
    """Return a run folder, its plan and its model, whose tensors are not read yet.

    The plan says what its choice takes here, if it was made for another processor, or if a card's
    kernels came or went.

    Raises:
        UsageError: if it is no run folder, or its plan cannot be read.
        ModelError: if the model is not here or damaged.
    """
    folder = RunFolder.open(path)
    plain = read_plan_file(folder.plan)
    model = open_model(planned_model(plain, folder.plan))
    plan = plan_from_json(plain, model.shape)
    here = found_again(plan.device.identity)
    return folder, plan if here is None else moved(plan, here), model


def open_session(plan: Plan, model: LocalModel, world: World = ALONE) -> Session:
    """Open a model on the planned backend, for all ranks of a world.

    Raises:
        UsageError: if the backend cannot be used here, with its reason.
    """
    backend = load_backend(plan.device.backend)
    usable = backend.usable(plan.device.identity)
    if not usable.value:
        raise UsageError(f"{plan.device.name} cannot be used: {usable.because}")
    return backend.open(plan.spec, model, world)


def open_adapted(plan: Plan, model: LocalModel, adapter: LoadedAdapter) -> Session:
    """Open a model with a saved adapter.

    The method is the file's: some methods train more than they save.

    Raises:
        UsageError: if the backend cannot be used here, with its reason.
    """
    choice = replace(plan.choice, method=adapter.method)
    with ExitStack() as held:
        session = open_session(replace(plan, choice=choice), model)
        held.callback(session.close)
        session.restore(adapter.tensors)
        held.pop_all()
    return session
