"""From events to the run folder, and back from a checkpoint to a run that goes on."""

from __future__ import annotations

from edgetune.runs.checkpoint import Checkpoint, load_checkpoint
from edgetune.runs.facts import RunFacts, plan_hash
from edgetune.runs.folder import RunFolder
from edgetune.runs.recorder import Recorder, recording
from edgetune.runs.report import write_report
from edgetune.runs.retention import best, latest
from edgetune.runs.rewind import rewind

__all__ = [
    "Checkpoint",
    "Recorder",
    "RunFacts",
    "RunFolder",
    "best",
    "latest",
    "load_checkpoint",
    "plan_hash",
    "recording",
    "rewind",
    "write_report",
]
