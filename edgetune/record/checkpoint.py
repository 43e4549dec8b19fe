"""Checkpoints: whole or not there, and enough to go on bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from edgetune.adapter_file import load_adapter, save_adapter
from edgetune.backend import Session, Tensors
from edgetune.errors import ModelError
from edgetune.files import sha256_file, whole_folder, write_json
from edgetune.plan import Plan
from edgetune.train import Progress

STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
BEST = "best"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint; ``state`` also holds versions and hashes."""

    progress: Progress
    adapter: Tensors
    optimizer: Tensors
    state: Mapping[str, Any]


def save_checkpoint(
    folder: Path, session: Session, plan: Plan, progress: Progress, facts: Mapping[str, Any]
) -> Path:
    """Write the session's state as ``step-NNNNNN`` and return its path; one that is there stays.

    ``facts`` are versions and hashes, compared on resume.
    """
    path = folder / f"step-{progress.step:06d}"
    if path.exists():
        return path
    with whole_folder(path) as temporary:
        save_adapter(
            temporary,
            plan.choice.method,
            plan.shape,
            session.adapter_tensors(),
            base=plan.model.ref,
        )
        tensors = {name: np.asarray(value) for name, value in session.optimizer_tensors().items()}
        save_file(dict(sorted(tensors.items())), temporary / OPTIMIZER)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
            for file in sorted(temporary.iterdir())
        }
        write_json(temporary / STATE, {"progress": asdict(progress), **facts, "files": files})
    return path


def load_checkpoint(path: Path, plan: Plan) -> Checkpoint:
    """Return a checkpoint after checking that it is whole.

    Raises:
        ModelError: if a file is missing or differs from what was written, naming it.
    """
    state = _checked_state(path)
    return Checkpoint(
        progress=Progress(**state["progress"]),
        adapter=load_adapter(path, plan.shape).tensors,
        optimizer=load_file(path / OPTIMIZER),
        state=state,
    )


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder."""
    return max(folder.glob("step-*"), default=None)


def mark_best(folder: Path, checkpoint: Path) -> None:
    """Point ``best`` at a checkpoint; a file with its name where links are not allowed."""
    temporary = folder / f".{BEST}"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(checkpoint.name)
    except OSError:  # Windows without the privilege
        temporary.write_text(checkpoint.name, "utf-8")
    temporary.replace(folder / BEST)


def best(folder: Path) -> Path | None:
    """Return the checkpoint with the lowest validation loss, if one was marked."""
    mark = folder / BEST
    if mark.is_symlink():
        return folder / mark.readlink()
    return folder / mark.read_text("utf-8") if mark.is_file() else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best; 0 deletes none."""
    if keep == 0:
        return
    for path in sorted(folder.glob("step-*"))[:-keep]:
        if path != best(folder):
            shutil.rmtree(path)


def _checked_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text("utf-8"))
        wrong = [
            name
            for name, facts in state["files"].items()
            if not (path / name).is_file() or sha256_file(path / name) != facts["sha256"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        wrong = [STATE]
    if wrong:
        raise ModelError(
            f"The checkpoint {path} is not whole: {', '.join(wrong)} is missing or damaged. "
            "Delete its folder to resume from the one before."
        )
    return state
