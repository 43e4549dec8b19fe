"""What a run really takes, beside what was planned: told as it happens, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edgetune.events import Evaluated, Event, Piloted, PlanExceeded, SaveDue, Stepped
from edgetune.planning import Plan
from edgetune.runs import RunFolder


@dataclass(slots=True)
class PhasePeaks:
    """The peak of each phase, from the peak of the whole process before and after it.

    That one never falls: where a phase raised it, it is the phase's own; where not, no more than
    that was taken.
    """

    top: int = 0
    found: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """Bytes by phase, and whether they are exact; otherwise they are a bound."""

    def saw(self, phase: str, peak: int) -> None:
        """Take down the peak of the process after a phase.

        >>> peaks = PhasePeaks()
        >>> for phase, peak in (("load", 3), ("train", 7), ("save", 7), ("train", 7)):
        ...     peaks.saw(phase, peak)
        >>> peaks.found
        {'load': (3, True), 'train': (7, True), 'save': (7, False)}
        """
        rose = peak > self.top
        self.top = max(self.top, peak)
        self.found[phase] = self.top, rose or self.found.get(phase) == (self.top, True)

    def to_json(self) -> dict[str, Any]:
        """Return what ``memory.json`` says of them."""
        return {name: {"bytes": size, "exact": exact} for name, (size, exact) in self.found.items()}


@dataclass(slots=True)
class AgainstPlan:
    """Holds a run's events against its plan; ``memory.json`` says what it saw.

    ``measure`` returns the peak of the process so far.
    """

    plan: Plan
    folder: RunFolder
    measure: Callable[[], int]
    pilot: Piloted | None = None
    exceeded: bool = False
    loaded_bytes: int = 0
    """The peak when the model was loaded; 0: it is loaded just now."""
    _peak: int = field(default=0)
    _phases: PhasePeaks = field(default_factory=PhasePeaks)

    def watch(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on; say once when the peak is above what was planned."""
        planned, phases = self.plan.memory.peak_bytes, self._phases
        phases.saw("load", self.loaded_bytes or self.measure())
        phases.top = max(phases.top, self.measure())
        for event in events:
            if isinstance(event, Evaluated):
                phases.saw("evaluate", self.measure())
            yield event
            if isinstance(event, SaveDue):  # saved by whom it was passed on to
                phases.saw("save", self.measure())
            if not isinstance(event, Stepped | Piloted):
                continue
            self._peak = max(self._peak, event.peak_bytes)
            if isinstance(event, Piloted):
                self.pilot = event
                phases.top = max(phases.top, event.peak_bytes)  # of all phases together
                self.record()
            else:
                phases.saw("train", event.peak_bytes)
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
            "phases": self._phases.to_json(),
            "pilot": pilot and {
                "peak_bytes": pilot.peak_bytes,
                "seconds_per_step": pilot.seconds,
                "planned_seconds_per_step": self.plan.time.seconds_per_step,
                "rows": pilot.rows,
            },
        }  # fmt: skip
        self.folder.write("memory.json", memory)
        return memory
