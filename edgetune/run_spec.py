"""What a backend is told of a run: what to compute, how it is trained, and within what.

It is part of a plan; what the planner weighed and why is no backend's concern.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.choice import Choice
from edgetune.settings.spec import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes that a session may take, and those that it is expected to."""

    budget_bytes: int
    """Of the device, for the whole process."""
    limit_bytes: int | None
    """What the user allows the whole process; None: nothing was said."""
    runtime_bytes: int
    """Of the libraries, before the first tensor."""
    training_bytes: int
    """At the peak of training, libraries included."""
    peak_bytes: int
    """At the peak of the whole run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """A run as a backend sees it.

    ``kind`` is the kind of device among those that the backend has, ``uuid`` names one where a
    machine may have several.
    """

    choice: Choice
    training: Training
    limits: Limits
    kind: str
    uuid: str | None = None
