"""From events to the run folder, and back from a checkpoint to a run that goes on."""

from __future__ import annotations

from edgetune.runs.checkpoint import (
    Checkpoint,
    Refused,
    load_checkpoint,
    newest_whole,
    none_whole,
)
from edgetune.runs.facts import RunFacts, plan_hash
from edgetune.runs.folder import RunFolder
from edgetune.runs.promotion import best_whole, promote
from edgetune.runs.recorder import Recorder, recording
from edgetune.runs.report import write_report
from edgetune.runs.retention import best, checkpoint_name, latest
from edgetune.runs.rewind import rewind

__all__ = [
    "Checkpoint",
    "Recorder",
    "Refused",
    "RunFacts",
    "RunFolder",
    "best",
    "best_whole",
    "checkpoint_name",
    "latest",
    "load_checkpoint",
    "newest_whole",
    "none_whole",
    "plan_hash",
    "promote",
    "recording",
    "rewind",
    "write_report",
]
