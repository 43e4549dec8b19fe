"""A plan beside a dry run of its step: what was computed against what was counted."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.backend import load_backend
from edgetune.planning import Plan
from edgetune.settings.spec import values


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """One phase of a run, in bytes without the runtime, which a dry run does not see."""

    phase: str
    planned_bytes: int
    counted_bytes: int


def verify(plan: Plan) -> list[Verified]:
    """Return plan and count of every phase that the backend can run dry.

    Raises:
        UsageError: if the backend cannot.
    """
    planned, without = values(plan.memory.phases), plan.memory.parts.runtime
    return [
        Verified(phase=phase, planned_bytes=planned[phase] - without, counted_bytes=counted)
        for phase, counted in load_backend(plan.device.backend)
        .dry_run(plan.spec, plan.shape)
        .items()
    ]
