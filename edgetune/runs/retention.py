"""The checkpoints of a run side by side: the newest, the best, those that go."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edgetune.files import partial_path

BEST: Final = "best"
_NAME: Final = re.compile(r"step-(\d{6,})")


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after some steps."""
    return f"step-{step:06d}"


def checkpoint_step(checkpoint: Path) -> int:
    """Return the steps after which a checkpoint was written."""
    found = _NAME.fullmatch(checkpoint.name)
    assert found is not None
    return int(found[1])


def checkpoints(folder: Path, last: int | None = None) -> list[Path]:
    """Return the checkpoints of a folder up to that of step ``last``, the newest last."""
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    ordered = sorted((int(match[1]), path) for match, path in found)
    return [path for step, path in ordered if last is None or step <= last]


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder."""
    found = checkpoints(folder)
    return found[-1] if found else None


def mark_best(folder: Path, checkpoint: Path) -> None:
    """Point ``best`` at a checkpoint; a file with its name where links are not allowed."""
    temporary = partial_path(folder / BEST)
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(checkpoint.name)
    except OSError:  # Windows without the privilege
        temporary.write_text(checkpoint.name, "utf-8")
    temporary.replace(folder / BEST)


def best(folder: Path) -> Path | None:
    """Return the checkpoint with the lowest validation loss, if one was marked and is there."""
    mark = folder / BEST
    if mark.is_symlink():
        path = folder / mark.readlink()
    elif mark.is_file():
        path = folder / mark.read_text("utf-8")
    else:
        return None
    return path if path.is_dir() else None


def prune(folder: Path, keep: int, besides: Iterable[str] = ()) -> None:
    """Delete all but the newest ``keep`` checkpoints, the best and those named ``besides``.

    0 deletes none.
    """
    if keep == 0:
        return
    kept = {best(folder), *(folder / name for name in besides)}
    for path in checkpoints(folder)[:-keep]:
        if path not in kept:
            delete(path)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint; cut short, this leaves no half of one under its name."""
    shutil.rmtree(checkpoint.rename(partial_path(checkpoint)))


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint that is not whole, in place of an older one; return where it is."""
    target = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(target, ignore_errors=True)
    return checkpoint.rename(target)


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left half written or half deleted."""
    for path in folder.glob(".*.partial"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
