"""From events to the run folder, and back from a checkpoint to a run that goes on.

What it offers is imported on use: reading a folder's logs needs no numpy, checkpoints do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetune.runs.checkpoint import (
        Checkpoint,
        Refused,
        load_checkpoint,
        newest_whole,
        none_whole,
    )
    from edgetune.runs.facts import RunFacts, plan_hash
    from edgetune.runs.folder import Kept, RunFolder
    from edgetune.runs.options import AS_USUAL, RunOptions
    from edgetune.runs.promotion import best_whole, promote
    from edgetune.runs.recorder import Recorder, recording
    from edgetune.runs.retention import best, checkpoint_name, checkpoint_step, latest

_PLACES = {
    "checkpoint": ("Checkpoint", "Refused", "load_checkpoint", "newest_whole", "none_whole"),
    "facts": ("RunFacts", "plan_hash"),
    "folder": ("Kept", "RunFolder"),
    "options": ("AS_USUAL", "RunOptions"),
    "promotion": ("best_whole", "promote"),
    "recorder": ("Recorder", "recording"),
    "retention": ("best", "checkpoint_name", "checkpoint_step", "latest"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "AS_USUAL",
    "Checkpoint",
    "Kept",
    "Recorder",
    "Refused",
    "RunFacts",
    "RunFolder",
    "RunOptions",
    "best",
    "best_whole",
    "checkpoint_name",
    "checkpoint_step",
    "latest",
    "load_checkpoint",
    "newest_whole",
    "none_whole",
    "plan_hash",
    "promote",
    "recording",
]


def __getattr__(name: str) -> object:
    """Import a name's module when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
