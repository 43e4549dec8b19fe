"""A run folder brought back to where it was when a checkpoint was written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgetune.events import RunState
from edgetune.runs.checkpoint import Checkpoint, Refused
from edgetune.runs.folder import RunFolder
from edgetune.runs.lines import is_step, keep_lines
from edgetune.runs.retention import (
    checkpoint_name,
    checkpoints,
    delete,
    mark_best,
    set_aside,
    sweep,
)


def rewind(
    folder: RunFolder, checkpoint: Checkpoint, refused: Sequence[Refused] = (), *, first: int = 0
) -> int:
    """Drop what came after a checkpoint and will be done again; return the metrics dropped.

    So are the metrics of steps before ``first``: 1 where the base is evaluated again. Checkpoints
    that were ``refused`` are set aside, for others will be written at their places.
    """
    now = checkpoint.state.progress
    sweep(folder.checkpoints)
    for damaged in refused:
        folder.note("checkpoint refused", damaged.because, kept=set_aside(damaged.path).name)
    found = checkpoints(folder.checkpoints)
    for path in reversed(found[found.index(checkpoint.path) + 1 :]):
        delete(path)
    if now.best_step is not None:
        mark_best(folder.checkpoints, folder.checkpoints / checkpoint_name(now.best_step))
    keep_lines(folder.journal, lambda _: True)
    return keep_lines(
        folder.metrics,
        lambda line: first <= _step_of(line) <= now.step and not _made_again(line, now),
    )


def _made_again(line: Mapping[str, Any], now: RunState) -> bool:
    """Tell whether a line is of the evaluation that is still to be made."""
    return now.unevaluated and line.get("event") == "eval" and _step_of(line) == now.step


def _step_of(line: Mapping[str, Any]) -> float:
    """Return the step of a line; one that names none is of no step that was taken."""
    step = line.get("step")
    return step if is_step(step) else math.inf
