"""Opening a run that was interrupted, where its newest checkpoint left it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgetune.device import read_device
from edgetune.device.base import CARD
from edgetune.errors import NothingFitsError, UsageError
from edgetune.events import Recovered, RunState
from edgetune.model import resolve
from edgetune.planning import Plan, with_sums_held
from edgetune.runs import (
    Checkpoint,
    Refused,
    RunFolder,
    RunOptions,
    newest_whole,
    none_whole,
    recording,
)
from edgetune.runs.facts import KERNELS
from edgetune.runs.retention import prune
from edgetune.runs.rewind import rewind
from edgetune.shares import sums_held
from edgetune.together import together
from edgetune.units import format_bytes
from edgetune.workflows.continuing import begin
from edgetune.workflows.job import Job
from edgetune.workflows.opening import open_planned, open_session
from edgetune.workflows.planning import read_rows
from edgetune.workflows.ranks import plan_on, tell_plan
from edgetune.workflows.roundings import Roundings
from edgetune.workflows.searching import damage
from edgetune.workflows.training import Run
from edgetune.workflows.worker import Recovery
from edgetune.world import ALONE, Place, World


def resume_run(
    path: Path,
    data: Path | None = None,
    memory: int | None = None,
    recovery: Recovery | None = None,
    world: World = ALONE,
    place: Place | None = None,
    options: RunOptions | None = None,
) -> Run:
    """Open a run where its newest checkpoint left it, at its start if it has none.

    ``data`` is where its rows lie now, ``memory`` the bytes that it may use from now on: the
    result does not depend on them. ``recovery`` says what became of the process before this one.
    As rank 0 of a ``world``, of any size, it takes the others along; ``place`` says how many of
    them share its machine's memory. The folder keeps ``options`` from now on, if they are given.

    Raises:
        UsageError: if there is nothing to resume, another process is at work on it, or the rows,
            the plan or the model are not the same.
        NothingFitsError: if the plan needs more than ``memory``.
        ModelError: if no checkpoint is whole.
    """
    folder, plan, model = open_planned(path)
    with ExitStack() as stack:
        stack.callback(world.close)
        stack.enter_context(folder.locked())
        rows = _rows_of(plan, data)
        _, dataset = read_rows(resolve(plan.model.ref), rows, plan.training)
        job = Job.of(plan, dataset.fit(plan.choice.context), model, world)
        checkpoint, refused = _checkpoint(folder, job)
        before = () if checkpoint is None else checkpoint.state.progress.shares
        roundings = Roundings.of(folder, checkpoint)
        parts, plan, anew = _parts(len(before), roundings.planned(plan), memory, world)
        job, shares = replace(job, plan=plan), () if anew else before
        tell_plan(world, plan, job.facts, parts, roundings)
        with together(world):
            session = open_session(_own(plan, rows, memory, place, parts), model, world)
        stack.callback(session.close)
        kept, lost = roundings.keep(session), roundings.lost(session)
        job = job.opened(session)
        start, recovered, newer = RunState(), None, ""
        if checkpoint is not None:
            session.restore(checkpoint.adapter, checkpoint.optimizer)
            with recording(folder):
                newer = _rewound(folder, checkpoint, refused, job)
                for because in filter(None, (kept, lost)):
                    folder.note("kernels", because)
                if anew and checkpoint.state.progress.step:
                    folder.note("sums in another order", anew, parts=parts)
            start = replace(checkpoint.state.progress, shares=shares)
        else:
            begin(session, folder, plan)
        if recovery is not None:
            fewer = recovery.rows
            recovered = Recovered(step=start.step, rows=fewer, because=recovery.because)
            if fewer < (start.rows or plan.choice.micro_batch):
                start = replace(start, rows=fewer)
        if options is not None:
            with recording(folder):
                options.keep(folder.path)
        held = stack.pop_all()
    return Run(
        job=job,
        folder=folder,
        session=session,
        start=start,
        held=held,
        notices=[
            *(item.notice for item in refused),
            *([anew] if anew and start.step else []),
            *([newer] if newer and start.step else []),
            *([lost] if lost and start.step else []),
            *([kept] if kept else []),
            *damage(folder, plan, start),
        ],
        recovered=recovered,
        world=world,
        parts=parts,
    )


def _parts(before: int, plan: Plan, memory: int | None, world: World) -> tuple[int, Plan, str]:
    """Return in how many parts a run adds up gradients from now on, its plan with what that takes on
    a rank, and why their number is another one than ``before``, if it is.

    It stays, and with it every bit, where this world has no more ranks and memory for the sums that wait.
    """
    parts = before or plan.training.gradient_parts or 1
    held = with_sums_held(plan, sums_held(world.size, max(parts, world.size)))
    if parts < world.size:
        because = (
            f"there are {world.size} processes, more than the run has parts of a step ({parts})"
        )
    elif held.memory.peak_bytes > (memory or plan.device.budget_bytes):
        because = f"the sums of {parts} parts of a step do not fit beside each other"
    else:
        return parts, held, ""
    return world.size, plan, f"Gradients are added in another order from here on: {because}."


def _own(plan: Plan, rows: Path, memory: int | None, place: Place | None, parts: int) -> Plan:
    """Return the plan with what this process may use: its share, where ranks share the memory.

    More ranks than before have less each: memory and time are planned anew where it does not do.
    """
    if place is None or place.local_world == 1 or plan.device.kind == CARD:
        return _allowed(plan, memory)
    share = read_device(plan.device.kind).usable_bytes // place.local_world
    limit = share if memory is None else min(memory, share)
    if plan.memory.peak_bytes <= limit:
        return _allowed(plan, limit)
    anew = plan_on(
        place, plan, parts,
        ref=plan.model.ref, data=rows, device=plan.device.kind, memory=limit,
    )  # fmt: skip
    return anew.plan


def _allowed(plan: Plan, memory: int | None) -> Plan:
    """Return the plan of a run with another limit, if one is given."""
    if memory is None:
        return plan
    needed = plan.memory.peak_bytes
    if memory < needed:
        raise NothingFitsError(
            f"This run needs {format_bytes(needed)}, and --memory allows {format_bytes(memory)}. "
            "Allow more, or train with a new plan into another --output."
        )
    return replace(plan, device=replace(plan.device, limit_bytes=memory, budget_bytes=memory))


def _rows_of(plan: Plan, data: Path | None) -> Path:
    """Return the file of the run's rows."""
    planned = Path(plan.data.path) if plan.data else None
    path = data or planned
    if path is None or (data is None and not path.exists()):
        raise UsageError(
            f"The rows of the run are not at {planned} any more. Say where they are now: "
            "--data FILE."
        )
    return path


def _checkpoint(folder: RunFolder, job: Job) -> tuple[Checkpoint | None, tuple[Refused, ...]]:
    """Return the newest whole checkpoint, if the run can go on from it as it began.

    None if it was stopped before its first one.
    """
    checkpoint, refused = newest_whole(folder.checkpoints, job.plan)
    if checkpoint is None and refused:
        raise none_whole(folder.path, refused)
    if checkpoint is None:
        return None, ()
    if changed := job.facts.changed(checkpoint.state):
        raise UsageError(
            f"The {' and the '.join(changed)} changed since {checkpoint.path} was written, so the "
            "run cannot continue as it began. Train again into another --output."
        )
    return checkpoint, refused


def _rewound(
    folder: RunFolder, checkpoint: Checkpoint, refused: Sequence[Refused], job: Job
) -> str:
    """Rewind the folder to the checkpoint and note it; return which versions are others now."""
    facts, progress = job.facts, checkpoint.state.progress
    step = progress.step
    dropped = rewind(folder, checkpoint, refused, first=0 if step else 1)
    # who was stopped after a checkpoint was written has not deleted those that went for it
    prune(folder.checkpoints, job.plan.training.keep, facts.returned_to(progress))
    folder.note("resumed", f"from {checkpoint.path.name}", step=step, dropped=dropped)
    newer = facts.newer(checkpoint.state)
    if KERNELS not in facts.versions:
        newer.pop(KERNELS, None)  # told by themselves
    if not newer:
        return ""
    because = "the result may differ in its last bits"
    folder.note("versions changed", because, **newer)
    changed = ", ".join(f"{name} {versions}" for name, versions in newer.items())
    return f"Versions changed since {checkpoint.path.name} ({changed}): {because}."
