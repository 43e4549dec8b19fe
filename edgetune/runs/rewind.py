"""A run folder brought back to where it was when a checkpoint was written."""

from __future__ import annotations

from edgetune.runs.checkpoint import Checkpoint
from edgetune.runs.folder import RunFolder
from edgetune.runs.lines import keep_lines
from edgetune.runs.retention import checkpoint_name, mark_best, sweep


def rewind(folder: RunFolder, checkpoint: Checkpoint) -> int:
    """Drop what came after a checkpoint and will be done again; return the metrics dropped."""
    now = checkpoint.progress
    sweep(folder.checkpoints)
    if now.best_step is not None:
        mark_best(folder.checkpoints, folder.checkpoints / checkpoint_name(now.best_step))
    keep_lines(folder.journal, lambda _: True)
    # before its first step a run evaluates the base, which is done again
    return keep_lines(folder.metrics, lambda line: 0 < now.step >= line["step"])
