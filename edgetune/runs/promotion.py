"""Which checkpoint a run hands over as its adapter, and how."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from edgetune.adapters import CONFIG, WEIGHTS
from edgetune.errors import ModelError, StoppedError
from edgetune.events import RunState
from edgetune.files import sha256_file, whole_folder
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


def promote(folder: RunFolder, source: Path) -> bool:
    """Copy a checkpoint's adapter to ``adapter/``; return whether it was not there yet.

    Raises:
        StoppedError: if something else is there; nothing of it is changed.
        OSError: if it cannot be written.
    """
    if folder.adapter.is_symlink() or folder.adapter.exists():
        _require_same(folder, source)
        return False
    try:
        with whole_folder(folder.adapter) as temporary:
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(source / name, temporary / name)
    except OSError:
        if folder.adapter.exists():  # since it was looked for
            _require_same(folder, source)
        raise
    return True


def _require_same(folder: RunFolder, source: Path) -> None:
    files = read_state(source).files
    try:
        same = all(sha256_file(folder.adapter / name) == files[name] for name in (CONFIG, WEIGHTS))
    except OSError:
        same = False
    if not same:
        raise StoppedError(
            f"{folder.adapter} is not this run's adapter: something else made or changed it, and "
            f"it is left alone. This run's is in {source}. Move the other away, then the run can "
            "be finished."
        )


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
