"""Checkpoints: whole or not there, and enough to go on bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgetune.adapters import NotFiniteError, load_adapter, save_adapter
from edgetune.backend import Session, Tensors
from edgetune.errors import ModelError
from edgetune.events import RunState
from edgetune.files import whole_folder
from edgetune.planning import Plan
from edgetune.runs.facts import RunFacts, SavedState
from edgetune.runs.retention import checkpoint_name, checkpoints
from edgetune.runs.state import DamagedCheckpointError, read_state, write_state
from edgetune.tensors.reader import read_tensors
from edgetune.tensors.writer import Outgoing, write_safetensors

OPTIMIZER: Final = "optimizer.safetensors"
TRIAL: Final = ".trial.partial"
"""Swept where a process was killed before it removed this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint."""

    path: Path
    state: SavedState
    adapter: Tensors
    optimizer: Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A checkpoint that is not whole, and what is wrong with it."""

    path: Path
    because: str

    @property
    def notice(self) -> str:
        """What a user is told who goes on without it."""
        return f"{self.because} The one before it is taken."


def save_checkpoint(
    folder: Path, session: Session, plan: Plan, progress: RunState, facts: RunFacts
) -> Path:
    """Write the session's state as ``step-NNNNNN`` and return its path; one that is there stays."""
    path = folder / checkpoint_name(progress.step)
    if path.exists():
        return path
    with whole_folder(path) as temporary:
        files = save_adapter(
            temporary,
            plan.choice.method,
            plan.shape,
            session.adapter_tensors(copied=False),
            base=plan.model.ref,
        )
        files[OPTIMIZER] = _save_optimizer(
            temporary / OPTIMIZER, session.optimizer_tensors(copied=False)
        )
        write_state(temporary, facts.state(progress), files)
    return path


def restate(folder: Path, progress: RunState, facts: RunFacts) -> None:
    """Write anew what the checkpoint of a step says of itself; its tensors stay as they are.

    Raises:
        ModelError: if it is not whole.
    """
    path = folder / checkpoint_name(progress.step)
    write_state(path, facts.state(progress), read_state(path).files)


def save_trial(
    folder: Path, session: Session, plan: Plan, progress: RunState, facts: RunFacts
) -> None:
    """Write the session's state where no checkpoint is looked for, and remove it again."""
    trial = folder / TRIAL
    trial.mkdir(exist_ok=True)
    try:
        save_checkpoint(trial, session, plan, progress, facts)
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _save_optimizer(path: Path, tensors: Tensors) -> str:
    named = sorted(tensors.items())
    return write_safetensors(path, [Outgoing.of(name, np.asarray(x)) for name, x in named])


def load_checkpoint(path: Path, plan: Plan) -> Checkpoint:
    """Return a checkpoint after checking that it is whole.

    Raises:
        DamagedCheckpointError: if a file is missing or differs from what was written, naming it,
            or if the adapter was not finite any more when it was written.
        ModelError: if it is of another version.
    """
    state = read_state(path)
    try:
        adapter = load_adapter(path, plan.shape).tensors
    except NotFiniteError as error:
        raise DamagedCheckpointError(
            f"The checkpoint {path} cannot be resumed from: the step before it left values that "
            "are not finite."
        ) from error
    return Checkpoint(
        path=path, state=state, adapter=adapter, optimizer=read_tensors(path / OPTIMIZER)
    )


def newest_whole(
    folder: Path, plan: Plan, last: int | None = None
) -> tuple[Checkpoint | None, tuple[Refused, ...]]:
    """Return the newest checkpoint that is whole, if there is one, and those that were refused.

    Those after step ``last`` are not looked at.

    Raises:
        ModelError: if one is of another version.
    """
    refused: list[Refused] = []
    for path in reversed(checkpoints(folder, last)):
        try:
            return load_checkpoint(path, plan), tuple(refused)
        except DamagedCheckpointError as error:
            refused.append(Refused(path=path, because=str(error)))
    return None, tuple(refused)


def none_whole(run: Path, refused: Sequence[Refused]) -> ModelError:
    """Return the error of a run that has no checkpoint left to go on from."""
    what = f"No checkpoint of the run {run} is whole. Train anew into another --output."
    reasons = [item.because for item in refused] or ["there is none any more"]
    return ModelError("\n  - ".join([what, *reasons]))
