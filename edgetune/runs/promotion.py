"""Which checkpoint a run hands over as its adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgetune.errors import ModelError
from edgetune.events import RunState
from edgetune.runs.checkpoint import Refused
from edgetune.runs.folder import RunFolder
from edgetune.runs.retention import checkpoint_name, checkpoints
from edgetune.runs.state import DamagedCheckpointError, read_state


def best_whole(folder: RunFolder, now: RunState) -> tuple[Path | None, tuple[Refused, ...]]:
    """Return the whole checkpoint with the lowest validation loss, and those that were refused.

    Without validation rows it is the newest one; None if none is better than the base.

    Raises:
        ModelError: if all that would do are damaged, or none is there.
    """
    refused: list[Refused] = []
    for path in _ranked(folder, now):
        try:
            read_state(path)
        except DamagedCheckpointError as error:
            refused.append(Refused(path=path, because=str(error)))
        else:
            return path, tuple(refused)
    if refused or now.base_loss is None:
        reasons = [item.because for item in refused] or ["there is none any more"]
        raise ModelError(
            "\n  - ".join([f"No checkpoint of {folder.path} can be handed over:", *reasons])
        )
    return None, ()


def _ranked(folder: RunFolder, now: RunState) -> Iterator[Path]:
    """Yield the checkpoints that may be handed over, the best first."""
    if now.base_loss is None:
        yield from reversed(checkpoints(folder.checkpoints))
        return
    losses = {line["step"]: line["loss"] for line in folder.evaluations() if line["step"] > 0}
    better = sorted((loss, step) for step, loss in losses.items() if loss < now.base_loss)
    steps = dict.fromkeys([now.best_step, *(step for _, step in better)])
    for step in steps:
        if step is not None and (path := folder.checkpoints / checkpoint_name(step)).is_dir():
            yield path
