"""From events to the run folder, and back from a checkpoint to a run that goes on."""

from __future__ import annotations

from edgetune.record.checkpoint import Checkpoint, load_checkpoint
from edgetune.record.facts import RunFacts, plan_hash
from edgetune.record.folder import RunFolder
from edgetune.record.recorder import Recorder
from edgetune.record.report import write_report
from edgetune.record.rewind import rewind
from edgetune.record.shelf import best, latest

__all__ = [
    "Checkpoint",
    "Recorder",
    "RunFacts",
    "RunFolder",
    "best",
    "latest",
    "load_checkpoint",
    "plan_hash",
    "rewind",
    "write_report",
]
