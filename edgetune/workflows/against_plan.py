"""What a run really takes, beside what was planned: told as it happens, and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edgetune.events import Event, Piloted, PlanExceeded, Stepped
from edgetune.planning import Plan
from edgetune.runs import RunFolder


@dataclass(slots=True)
class AgainstPlan:
    """Holds a run's events against its plan; ``memory.json`` says what it saw."""

    plan: Plan
    folder: RunFolder
    pilot: Piloted | None = None
    exceeded: bool = False
    _peak: int = field(default=0)

    def watch(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on; say once when the peak is above what was planned."""
        planned = self.plan.memory.peak_bytes
        for event in events:
            yield event
            if not isinstance(event, Stepped | Piloted):
                continue
            self._peak = max(self._peak, event.peak_bytes)
            if isinstance(event, Piloted):
                self.pilot = event
                self.record()
            if self._peak > planned and not self.exceeded:
                self.exceeded = True
                yield PlanExceeded(step=event.step, peak_bytes=self._peak, planned_bytes=planned)

    def record(self, peak_bytes: int = 0) -> dict[str, Any]:
        """Write ``memory.json`` with the highest peak so far and return its content."""
        peak = max(peak_bytes, self._peak, self.folder.peak_bytes())
        planned, pilot = self.plan.memory.peak_bytes, self.pilot
        memory = {
            "planned_bytes": planned,
            "peak_bytes": peak,
            "budget_bytes": self.plan.device.budget_bytes,
            "exceeded": peak > planned,
            "pilot": pilot and {
                "peak_bytes": pilot.peak_bytes,
                "seconds_per_step": pilot.seconds,
                "planned_seconds_per_step": self.plan.time.seconds_per_step,
                "rows": pilot.rows,
            },
        }  # fmt: skip
        self.folder.write("memory.json", memory)
        return memory
