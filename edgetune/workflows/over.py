"""What a reference to an adapter or a model does not say itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """The base of adapters that do not belong to a run, and the device and memory for what no run
    has planned.
    """

    model: str | None = None
    device: str = "auto"
    memory: int | None = None
