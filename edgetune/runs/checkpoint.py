"""Checkpoints: whole or not there, and enough to go on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgetune.adapters import load_adapter, save_adapter
from edgetune.backend import Session, Tensors
from edgetune.errors import ModelError
from edgetune.events import RunState
from edgetune.files import sha256_file, whole_folder, write_json
from edgetune.planning import Plan
from edgetune.runs.facts import VERSION, RunFacts
from edgetune.runs.retention import checkpoint_name
from edgetune.tensors.reader import read_tensors
from edgetune.tensors.writer import Outgoing, write_safetensors

STATE: Final = "state.json"
OPTIMIZER: Final = "optimizer.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint; ``state`` is what its ``state.json`` says."""

    path: Path
    progress: RunState
    adapter: Tensors
    optimizer: Tensors
    state: Mapping[str, Any]


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
            session.adapter_tensors(),
            base=plan.model.ref,
        )
        files[OPTIMIZER] = _save_optimizer(temporary / OPTIMIZER, session.optimizer_tensors())
        write_json(temporary / STATE, {**facts.state(progress), "files": files})
    return path


def _save_optimizer(path: Path, tensors: Tensors) -> str:
    named = sorted(tensors.items())
    return write_safetensors(path, [Outgoing.of(name, np.asarray(x)) for name, x in named])


def load_checkpoint(path: Path, plan: Plan) -> Checkpoint:
    """Return a checkpoint after checking that it is whole.

    Raises:
        ModelError: if a file is missing or differs from what was written, naming it.
    """
    state = _checked_state(path)
    return Checkpoint(
        path=path,
        progress=RunState(**state["progress"]),
        adapter=load_adapter(path, plan.shape).tensors,
        optimizer=read_tensors(path / OPTIMIZER),
        state=state,
    )


def _checked_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text("utf-8"))
        version = state["version"]
        wrong = [name for name, digest in state["files"].items() if _digest(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        wrong, version = [STATE], VERSION
    if wrong:
        raise ModelError(
            f"The checkpoint {path} is not whole: {', '.join(wrong)} is missing or damaged. "
            "Delete its folder to resume from the one before."
        )
    if version != VERSION:
        raise ModelError(
            f"The checkpoint {path} is of version {version}; expected {VERSION}. Resume it with "
            "the edgetune that wrote it."
        )
    return state


def _digest(file: Path) -> str | None:
    return sha256_file(file) if file.is_file() else None
