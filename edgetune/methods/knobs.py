"""Settings that several methods have, each declared once."""

from __future__ import annotations

from copy import copy
from dataclasses import fields
from typing import Any

from edgetune.settings.spec import Interval, knob


def targets_knob(*default: str) -> Any:
    """Declare which projections are adapted."""
    text = "Adapted projections: a group, names or globs, comma-separated."
    return knob(default or ("all-linear",), text)


def layers_knob() -> Any:
    """Declare how many blocks are adapted."""
    text = "How many of the last blocks to adapt (default: all)."
    return knob(None, text, interval=Interval(low=1))


def dropout_knob() -> Any:
    """Declare the dropout of an update's inputs."""
    text = "Dropout probability of the update's inputs."
    return knob(0.0, text, interval=Interval(low=0, below=1))


def shared_knob(owner: type, name: str) -> Any:
    """Declare the setting of another method, for one that has that method as a part."""
    return copy(next(item for item in fields(owner) if item.name == name))
