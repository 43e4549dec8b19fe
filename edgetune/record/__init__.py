"""From events to the run folder, and back from a checkpoint to a run that goes on."""

from __future__ import annotations

from edgetune.record.checkpoint import Checkpoint, best, latest, load_checkpoint
from edgetune.record.folder import RunFolder
from edgetune.record.recorder import Recorder, differences

__all__ = [
    "Checkpoint",
    "Recorder",
    "RunFolder",
    "best",
    "differences",
    "latest",
    "load_checkpoint",
]
